-- Count successful probes; enough of them close the breaker: as many as the half-open state allows
-- at once, or as the reporting worker needs, whichever is less. A worker whose own breaker closed
-- while it was disconnected reports all that it needs.
-- args  token, successes, needed (half_open_calls)
touch()
redis.call('ZREM', LEASES, args.token)
if is_current() and record.state ~= 'closed' then
  record.successes = record.successes + args.successes
  if record.successes >= math.min(record.places, args.needed) then
    move('closed')
  end
  publish()
end
save()
return reply()
