-- Start of every script: arguments, clock and number formats.
--
-- ARGV[1] is a JSON object; the names of its members are listed in each script. Durations are whole
-- microseconds. Time is the server's; the clocks of workers are never used.
local args = cjson.decode(ARGV[1])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local LIVE = 60 * 1000000  -- how long a silent worker counts as present

local function whole(number)
  return string.format('%.0f', number)
end

-- Return a stored number, or the default unless a double represents it exactly (damaged or forged).
local function number_of(text, default)
  local number = tonumber(text)
  return number and math.abs(number) < 2 ^ 53 and number or default
end

-- Return whether a newer protocol owns the data: one of its workers sent a command within a minute.
-- Then the caller must not change them. Data of a newer protocol without a worker are deleted, so
-- that a rollback shares again. Data of an older protocol are taken over.
local function is_foreign(protocol, seen)
  if protocol <= args.protocol then
    return false
  end
  if #redis.call('ZRANGEBYSCORE', seen, whole(now - LIVE), '+inf', 'LIMIT', 0, 1) > 0 then
    return true
  end
  redis.call('DEL', unpack(KEYS))
  return false
end
