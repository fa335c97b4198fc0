-- Request a lease for a probe, or renew it. A granted lease lasts until its deadline. A request that
-- is not granted changes nothing. The worker that begins the half-open state determines the number
-- of concurrent probes, so workers with other settings cannot change it meanwhile.
-- args  token, deadline (duration), places (half_open_calls)
touch()
if record.state == 'open' and now >= record.till then
  move('half_open')
  record.places = args.places
end
local granted = record.state == 'closed'
if record.state == 'half_open' then
  local held = redis.call('ZSCORE', LEASES, args.token)
  granted = held or not probes_taken()
  if granted then
    redis.call('ZADD', LEASES, whole(now + args.deadline), args.token)
  end
  if granted and not held then
    publish()
  end
end
save()
return reply(granted and true)
