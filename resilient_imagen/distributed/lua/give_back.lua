-- Places that nobody used: the latest ones are as if never taken, a future one is for the next to
-- ask, and one whose time has passed is gone, since two requests must not go out together.
-- ARGV  interval, slack, then the places' names
local interval, slack = tonumber(ARGV[1]), tonumber(ARGV[2])
for i = 3, #ARGV do
  local due = tonumber(ARGV[i]) - interval - slack
  if tonumber(ARGV[i]) == next_place then
    next_place = next_place - interval
  elseif due > now and tonumber(ARGV[i]) < next_place then
    redis.call('ZADD', FREE, whole(due), ARGV[i])
  end
end
while redis.call('ZREM', FREE, whole(next_place)) == 1 do
  next_place = next_place - interval
end
save()
return 'OK'
