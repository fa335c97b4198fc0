-- Store a worker's report about the operators' orders, and return the orders if they have changed.
-- KEYS  orders (hash: any name to "end order", the end in microseconds; "serial" to the highest
--       serial)
--       obeyed (hash: worker to its report), heard (sorted set: worker by the time of its heartbeat)
-- args  worker, report (JSON), known (serial up to which the worker knows the orders), leaving (bool)
-- The answer has the time, the highest serial and, if that is not the known one, all orders.
local ORDERS, OBEYED, HEARD = KEYS[1], KEYS[2], KEYS[3]

if args.leaving then
  redis.call('HDEL', OBEYED, args.worker)
  redis.call('ZREM', HEARD, args.worker)
else
  redis.call('HSET', OBEYED, args.worker, args.report)
  redis.call('ZADD', HEARD, whole(now), args.worker)
end
local gone = redis.call('ZRANGEBYSCORE', HEARD, '-inf', whole(now - LIVE), 'LIMIT', 0, 1000)
if #gone > 0 then
  redis.call('ZREM', HEARD, unpack(gone))
  redis.call('HDEL', OBEYED, unpack(gone))
end
redis.call('PEXPIRE', OBEYED, whole(LIVE / 1000))
redis.call('PEXPIRE', HEARD, whole(LIVE / 1000))

local serial = redis.call('HGET', ORDERS, 'serial') or '0'
local found = {}
if serial ~= args.known then
  local stored = redis.call('HGETALL', ORDERS)
  for i = 1, #stored, 2 do
    local order = string.match(stored[i + 1], '^%d+ (.*)$')
    if stored[i] ~= 'serial' and order then
      found[#found + 1] = order
    end
  end
end
return cjson.encode({time = whole(now), serial = serial, orders = #found > 0 and found})
