-- Register a worker and the resources that it shares, for `resilient-imagen status`, and add its
-- counters to those of all workers.
-- KEYS  topics (sorted set: resource by the time of its last use), members (hash: description of
--       each worker), seen (sorted set: worker by the time of its last command), minutes (hash:
--       minute since 1970 and the name of a counter, to its value)
-- args  worker, description (JSON), resources, leaving (bool), minutes (objects with age, in
--       microseconds, and counts: the counters since the last registration, by name)
local TOPICS, MEMBERS, SEEN, MINUTES = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local KEEP = 3600 * 1000000
local MINUTE = 60 * 1000000

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

local is_new = false
for _, part in ipairs(args.minutes or {}) do
  local minute = whole(math.floor((now - part.age) / MINUTE))
  for name, value in pairs(part.counts) do
    local field = minute .. ' ' .. name
    local before = number_of(redis.call('HGET', MINUTES, field) or '0', 0)
    local is_maximum = string.match(name, '^longest_')
    local after = is_maximum and math.max(before, value) or before + value
    is_new = redis.call('HSET', MINUTES, field, string.format('%.6f', after)) == 1 or is_new
  end
end
if is_new then
  local stored = redis.call('HGETALL', MINUTES)
  for i = 1, #stored, 2 do
    local minute = tonumber(string.match(stored[i], '^(%d+) ') or '')
    if not minute or math.abs(minute * MINUTE - now) > KEEP + MINUTE then
      redis.call('HDEL', MINUTES, stored[i])
    end
  end
end

for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, whole(KEEP / 1000))
end
return 'OK'
