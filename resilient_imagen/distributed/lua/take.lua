-- Take the next `count` images-per-minute places of all workers, in the order of asking.
-- Answers with pairs of a wait in microseconds and the place's name; then the wait that the next
-- one to ask would be given.
-- ARGV  count, interval, slack (how far ahead of even spacing a burst may run)
local count, interval, slack = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

-- So many places cannot have been taken in advance (damaged or forged): begin at the present.
if next_place - slack - now > math.max(FURTHEST, 100 * interval) then
  next_place = now
end
redis.call('ZREMRANGEBYSCORE', FREE, '-inf', '(' .. whole(now))

-- The earliest place: one that was given back, or a new one.
local function earliest()
  local due = math.max(now, next_place - slack)
  local free = redis.call('ZRANGE', FREE, 0, 0, 'WITHSCORES')
  if free[1] and tonumber(free[2]) <= due then
    return tonumber(free[2]), free[1]
  end
  return due
end

local answer = {}
for _ = 1, count do
  local due, place = earliest()
  if place then
    redis.call('ZREM', FREE, place)
  else
    next_place = math.max(next_place, due) + interval
    place = whole(next_place)
  end
  answer[#answer + 1] = whole(due - now)
  answer[#answer + 1] = place
end
local due = earliest()
answer[#answer + 1] = whole(due - now)
if count > 0 then
  save()
end
return answer
