-- Store an operator's order and publish it. Workers that miss the message read it at a heartbeat.
-- KEYS  orders (see orders.lua), history (sorted set: the last orders by their serials)
-- args  channel, field, order (JSON), serial, ends (microseconds since 1970, the server's),
--       replaced (fields of orders that it replaces), restored (bool: it was given earlier, and is
--       already in the history)
-- The answer is 1, or 0 if the serial is not higher than all others, or not close to the present: the
-- caller has read the orders, or the time, before they changed, and tries again.
local ORDERS, HISTORY = KEYS[1], KEYS[2]
local KEEP = 25 * 3600  -- seconds; an order lasts 24 hours at most
local MINUTE = 60 * 1000000
local WEEK = 7 * 24 * 3600 * 1000000
local MOST = 100  -- orders in the history

local highest = number_of(redis.call('HGET', ORDERS, 'serial') or '0', 0)
if highest > now + MINUTE then
  highest = 0  -- damaged, forged, or of a clock that was wrong
end
local serial = tonumber(args.serial)
if serial <= highest or math.abs(serial - now) > MINUTE then
  return 0
end
local stored = redis.call('HGETALL', ORDERS)
for i = 1, #stored, 2 do
  local ends = string.match(stored[i + 1], '^(%d+) ')
  if stored[i] ~= 'serial' and not (ends and tonumber(ends) > now) then
    redis.call('HDEL', ORDERS, stored[i])
  end
end
for _, field in ipairs(args.replaced) do
  redis.call('HDEL', ORDERS, field)
end
redis.call('HSET', ORDERS, args.field, args.ends .. ' ' .. args.order, 'serial', args.serial)
redis.call('PEXPIRE', ORDERS, whole(KEEP * 1000))
if not args.restored then
  redis.call('ZADD', HISTORY, args.serial, args.order)
end
redis.call('ZREMRANGEBYSCORE', HISTORY, '-inf', whole(now - WEEK))
local surplus = redis.call('ZCARD', HISTORY) - MOST
if surplus > 0 then
  redis.call('ZREM', HISTORY, unpack(redis.call('ZRANGE', HISTORY, 0, surplus - 1)))
end
redis.call('PEXPIRE', HISTORY, whole(WEEK / 1000))
redis.call('PUBLISH', args.channel, cjson.encode({orders = args.serial}))
return 1
