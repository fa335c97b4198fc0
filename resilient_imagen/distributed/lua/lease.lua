-- A worker wants to send a probe. Granted: its place is kept until the deadline, and no longer.
-- Asking again with a token that is held renews it; asking in vain changes nothing.
-- ARGV  token, deadline (duration), half_open_calls
local token, deadline = ARGV[4], tonumber(ARGV[5])
local granted = false
touch('0', '0')
record.places = tonumber(ARGV[6])
if record.state == 'open' and now >= record.till then
  move('half_open')
end
if record.state == 'closed' then
  granted = true
elseif record.state == 'half_open' then
  if redis.call('ZSCORE', LEASES, token) then
    redis.call('ZADD', LEASES, whole(now + deadline), token)
    granted = true
  elseif not probes_taken() then
    redis.call('ZADD', LEASES, whole(now + deadline), token)
    granted = true
    publish()
  end
end
save()
return told(granted)
