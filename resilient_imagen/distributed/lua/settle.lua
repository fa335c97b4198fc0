-- Probes have succeeded; as many as are needed close the circuit. A worker whose own breaker
-- closed while it was cut off says so too: nobody has seen anything newer, or it would not be
-- speaking of this state.
-- ARGV  epoch, generation, token, successes, half_open_calls
touch('0', '0')
redis.call('ZREM', LEASES, ARGV[6])
if same(ARGV[4], ARGV[5]) and record.state ~= 'closed' then
  record.successes = record.successes + tonumber(ARGV[7])
  record.places = tonumber(ARGV[8])
  if record.successes >= record.places then
    move('closed')
  end
  publish()
end
save()
return told()
