-- Release the lease of a probe that ended without an outcome or was never sent.
-- args  token
if redis.call('ZREM', LEASES, args.token) == 1 then
  publish()
end
save()
return reply()
