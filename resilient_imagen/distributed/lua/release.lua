-- A probe ended without a verdict, or was never sent: its place is free for the next caller.
-- ARGV  token
if redis.call('ZREM', LEASES, ARGV[4]) == 1 then
  publish()
end
save()
return told()
