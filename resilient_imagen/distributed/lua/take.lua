-- Take places from the shared images-per-minute schedule, in turns.
--
-- Places are evenly spaced (the generic cell rate algorithm); `next` is the time of the next one. A
-- place is handed out shortly before its time and only to a worker that asks, so a worker that dies
-- holds none for longer than that. Workers with waiting callers are in a queue. The first one takes
-- one place and goes to the end; a worker that is silent for some seconds loses its turn. It counts
-- as present for a minute, because it may have lost its connection only.
--
-- If workers have different settings, the longest interval applies to all that are present.
--
-- KEYS  pace (hash), queue (sorted set: worker by turn), wants (hash: waiting callers of each),
--       seen (sorted set: worker by the time of its last command),
--       intervals (sorted set: worker by its interval)
-- args  protocol, worker, interval, burst, known (bool: the worker has used this schedule before),
--       ahead (duration: the worker knows that the next place is not before that), returned (names
--       of unused places), want (callers without a place; absent in a heartbeat), leaving (bool)
local PACE, QUEUE, WANTS, SEEN, INTERVALS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local EARLY = 300 * 1000       -- how long before its time a place is handed out
local SILENCE = 3 * 1000000    -- after which a worker loses its turn; three heartbeats
local HEARTBEATS = 500         -- a second, of all workers together
local LOST = 2 * 1000000       -- without a command for so long, places may be unknown here
local SOON = 50 * 1000         -- the shortest time after which a worker asks again
local KEEP = 60 * 1000000

local stored = redis.call('HMGET', PACE, 'next', 'at', 'turn', 'protocol')
local protocol = number_of(stored[4] or '0', 0)
if is_foreign(protocol, SEEN) then
  return cjson.encode({protocol = protocol})
elseif protocol > args.protocol then
  stored = {}
end
-- On a full server, a script may finish if its first write needs no memory.
redis.call('PEXPIRE', PACE, whole(KEEP / 1000))
local next_place = number_of(stored[1] or '0', 0)
local lost = args.known and now - number_of(stored[2] or '0', 0) > LOST
local turn = number_of(stored[3] or '0', 0)
local back = number_of(stored[2] or '0', 0) - now
if back > 0 then  -- the server's clock was set back, or another server took over
  next_place = next_place - back
  for _, worker in ipairs(redis.call('ZRANGE', SEEN, 0, -1)) do
    redis.call('ZINCRBY', SEEN, whole(-back), worker)
  end
end

local function end_turns(workers)
  if #workers > 0 then
    redis.call('ZREM', QUEUE, unpack(workers))
    redis.call('HDEL', WANTS, unpack(workers))
  end
end

local function remove(workers)
  if #workers > 0 then
    end_turns(workers)
    redis.call('ZREM', SEEN, unpack(workers))
    redis.call('ZREM', INTERVALS, unpack(workers))
  end
end

local function silent(low, high)
  return redis.call('ZRANGEBYSCORE', SEEN, low, high, 'LIMIT', 0, 1000)
end

local silence = SILENCE * math.max(1, redis.call('ZCARD', SEEN) / HEARTBEATS)
remove(silent('-inf', whole(now - math.max(LIVE, silence))))
remove(silent(whole(now + SILENCE), '+inf'))
end_turns(silent('-inf', whole(now - silence)))
if args.leaving then
  remove({args.worker})
else
  redis.call('ZADD', SEEN, whole(now), args.worker)
  redis.call('ZADD', INTERVALS, whole(args.interval), args.worker)
end

local slowest = redis.call('ZRANGE', INTERVALS, -1, -1, 'WITHSCORES')
while slowest[1] and not redis.call('ZSCORE', SEEN, slowest[1]) do
  redis.call('ZREM', INTERVALS, slowest[1])
  slowest = redis.call('ZRANGE', INTERVALS, -1, -1, 'WITHSCORES')
end
local interval = slowest[2] and tonumber(slowest[2]) or args.interval
local slack = (args.burst - 1) * interval
-- Redis may have lost its data, which the worker then knows better. No place can be further ahead
-- than the furthest that is handed out (damaged or forged).
next_place = math.max(next_place, now + args.ahead)
if lost then  -- other workers may have sent meanwhile
  next_place = math.max(next_place, now + interval + slack)
end
next_place = math.min(next_place, now + EARLY + interval + slack)
for _, name in ipairs(args.returned) do  -- a place before the last one is lost
  if tonumber(name) == next_place then
    next_place = next_place - interval
  end
end

local function due()
  return math.max(now, next_place - slack)
end

local function enqueue()
  turn = turn + 1
  redis.call('ZADD', QUEUE, whole(turn), args.worker)
end

local function is_first()
  return redis.call('ZRANGE', QUEUE, 0, 0)[1] == args.worker
end

local places, want = {}, args.leaving and 0 or args.want
if want then
  if want > 0 and not redis.call('ZSCORE', QUEUE, args.worker) then
    enqueue()
  end
  while want > 0 and is_first() and due() - now <= EARLY do
    local wait = due() - now
    next_place = math.max(next_place, now) + interval
    places[#places + 1] = {wait, whole(next_place)}
    want = want - 1
    enqueue()
  end
  if want > 0 then
    redis.call('HSET', WANTS, args.worker, whole(want))
  else
    redis.call('ZREM', QUEUE, args.worker)
    redis.call('HDEL', WANTS, args.worker)
  end
end

-- The callers of other workers that wait, for estimates.
local rank = redis.call('ZRANK', QUEUE, args.worker)
local others = redis.call('ZCARD', QUEUE) - (rank and 1 or 0)
local wanted = 0
if others > 0 then
  for _, count in ipairs(redis.call('HVALS', WANTS)) do
    wanted = wanted + number_of(count, 0)
  end
  wanted = wanted - number_of(redis.call('HGET', WANTS, args.worker) or '0', 0)
end

redis.call('HSET', PACE, 'protocol', whole(args.protocol), 'next', whole(next_place),
  'at', whole(now), 'turn', whole(turn), 'interval', whole(interval))
local keep = whole((math.max(next_place - now, 0) + KEEP) / 1000)
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, keep)
end
return cjson.encode({
  protocol = args.protocol, places = places, interval = interval,
  want = number_of(redis.call('HGET', WANTS, args.worker) or '0', 0),
  next = math.max(next_place - now, 0), others = others, wanted = wanted,
  again = math.max(due() - now + (rank or 0) * interval - EARLY, SOON),
  workers = redis.call('ZCARD', SEEN), position = redis.call('ZRANK', INTERVALS, args.worker) or 0,
})
