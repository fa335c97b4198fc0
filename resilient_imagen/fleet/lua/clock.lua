-- Begins every step. Time is the server's, in whole microseconds (a double holds them exactly for
-- another two centuries); the clocks of those who ask are never looked at.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])

local function whole(number)
  return string.format('%.0f', number)
end
