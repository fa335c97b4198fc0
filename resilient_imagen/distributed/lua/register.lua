-- Register a worker and the resources that it shares, for `resilient-imagen status`.
-- KEYS  topics (sorted set: resource by the time of its last use), members (hash: description of
--       each worker), seen (sorted set: worker by the time of its last command)
-- args  worker, description (JSON), resources, leaving (bool)
local TOPICS, MEMBERS, SEEN = KEYS[1], KEYS[2], KEYS[3]
local KEEP = 3600 * 1000000

redis.call('ZREMRANGEBYSCORE', TOPICS, '-inf', whole(now - KEEP))
for _, resource in ipairs(args.resources) do
  redis.call('ZADD', TOPICS, whole(now), resource)
end
redis.call('HSET', MEMBERS, args.worker, args.description)
redis.call('ZADD', SEEN, whole(args.leaving and now - LIVE or now), args.worker)
local gone = redis.call('ZRANGEBYSCORE', SEEN, '-inf', whole(now - LIVE), 'LIMIT', 0, 1000)
if #gone > 0 then
  redis.call('ZREM', SEEN, unpack(gone))
  redis.call('HDEL', MEMBERS, unpack(gone))
end
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, whole(KEEP / 1000))
end
return 'OK'
