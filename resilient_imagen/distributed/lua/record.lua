-- Begins every step about a circuit: reads its record; says how it changes, is kept and is told.
-- KEYS  circuit (hash), leases (sorted set: token by deadline), workers (hash), seen (sorted set)
-- ARGV  worker, channel, route; from ARGV[4] on what the step itself needs
local CIRCUIT, LEASES, WORKERS, SEEN = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local WORKER, CHANNEL, ROUTE = ARGV[1], ARGV[2], ARGV[3]
local KEEP = 3600 * 1000000   -- how long a route that nobody uses is remembered
local LIVE = 60 * 1000000     -- how long a worker that says nothing is counted

local record = {
  epoch = '', version = 0, generation = 1, state = 'closed', since = now, till = now,
  openings = 0, cause = '', brief = '', streak = 0, witness = '', answered = 0,
  places = 1, successes = 0, at = now,
  hinted = 0,  -- the generation of the latest opening that ends in the closed state
}
local stored = redis.call('HGETALL', CIRCUIT)
for i = 1, #stored, 2 do
  local name, value = stored[i], stored[i + 1]
  local number = type(record[name]) == 'number'
  record[name] = number and number_of(value, record[name]) or not number and value or record[name]
end
if record.epoch == '' then
  record.epoch = whole(now) .. '-' .. WORKER
end

-- The server's clock was put back, or another server took over: every moment moves with it, so
-- that what was left of each duration is left still.
local back = record.at - now
if back > 0 then
  record.since, record.till = record.since - back, record.till - back
  for _, key in ipairs({LEASES, SEEN}) do
    for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do
      redis.call('ZINCRBY', key, whole(-back), member)
    end
  end
end

-- Leases that have run out, and those that no worker can have asked for.
redis.call('ZREMRANGEBYSCORE', LEASES, '-inf', whole(now))
redis.call('ZREMRANGEBYSCORE', LEASES, whole(now + KEEP), '+inf')

local function probes_taken()
  return redis.call('ZCARD', LEASES) + record.successes >= record.places
end

-- What everybody is told: durations, never moments.
local function told(granted)
  local lease = 0
  if record.state == 'half_open' and probes_taken() then
    local first = redis.call('ZRANGE', LEASES, 0, 0, 'WITHSCORES')
    lease = first[2] and math.max(tonumber(first[2]) - now, 1) or 1
  end
  return cjson.encode({
    route = ROUTE, epoch = record.epoch, version = record.version,
    generation = record.generation, state = record.state,
    left = math.max(record.till - now, 0), openings = record.openings,
    closes = record.hinted == record.generation,
    cause = record.cause, brief = record.brief, lease = lease,
    workers = redis.call('ZCARD', SEEN), granted = granted or false,
  })
end

-- Others have to know: a newer version of the record, and everybody hears of it.
local function publish()
  record.version = record.version + 1
  redis.call('PUBLISH', CHANNEL, told())
end

local function save()
  record.at = now
  local fields = {}
  for name, value in pairs(record) do
    fields[#fields + 1] = name
    fields[#fields + 1] = type(value) == 'number' and whole(value) or value
  end
  redis.call('HSET', CIRCUIT, unpack(fields))
  local keep = whole((math.max(record.till - now, 0) + KEEP) / 1000)
  for _, key in ipairs(KEYS) do
    redis.call('PEXPIRE', key, keep)
  end
end

-- Whether the caller speaks of the state that the circuit is in. What was seen in an earlier one
-- says nothing about this one.
local function same(epoch, generation)
  return epoch == record.epoch and tonumber(generation) == record.generation
end

-- With `counts_stay`, failures in a row go on to be counted in the new state.
local function move(state, counts_stay)
  record.state, record.since, record.till = state, now, now
  record.generation = record.generation + 1
  if not counts_stay then
    record.streak, record.witness, record.answered = 0, '', 0
  end
  record.successes = 0
  redis.call('DEL', LEASES)
  if state == 'closed' then
    record.openings, record.cause, record.brief = 0, '', ''
  end
end

-- Open for `pause` from now; if it is open already, for the longer of both. The worker whose vote
-- or failed probe opens it determines the length for all workers. With `closes` (a hint) it is
-- closed when it is over, unless anything else opened or lengthens it.
local function open(pause, cause, brief, closes)
  local longer = now + pause > record.till
  if record.state ~= 'open' then
    closes = closes and record.state == 'closed'
    record.openings = record.openings + 1
    move('open', closes)
    record.hinted = closes and record.generation or 0
    longer = true
  elseif not closes and record.hinted == record.generation then
    record.hinted = 0
  elseif not longer then
    return
  end
  if longer then
    record.till = now + pause
    record.cause, record.brief = cause, brief
  end
  publish()
end

-- What every worker heard of has counted, and in which state.
local function workers()
  local found = {}
  local entries = redis.call('HGETALL', WORKERS)
  for i = 1, #entries, 2 do
    local generation, calls, failures = string.match(entries[i + 1], '(%d+):(%d+):(%d+)')
    found[#found + 1] = {
      generation = tonumber(generation), calls = tonumber(calls), failures = tonumber(failures),
    }
  end
  return found
end

-- Whether no other worker is there, busy or not. The caller has said that it is.
local function alone()
  return redis.call('ZCARD', SEEN) == 1
end

-- The worker has seen a failure. Whether it is the only one that has, since the last success or,
-- while half-open, in this round.
local function sole_witness()
  if record.witness == '' then
    record.witness = WORKER
  elseif record.witness ~= WORKER then
    record.witness = '*'
  end
  return record.witness ~= '*'
end

-- The worker is alive, and has counted so much. Those not heard of for long are forgotten.
local function touch(calls, failures)
  redis.call('HSET', WORKERS, WORKER,
    whole(record.generation) .. ':' .. calls .. ':' .. failures)
  redis.call('ZADD', SEEN, whole(now), WORKER)
  local gone = redis.call('ZRANGEBYSCORE', SEEN, '-inf', whole(now - LIVE), 'LIMIT', 0, 1000)
  if #gone > 0 then
    redis.call('ZREM', SEEN, unpack(gone))
    redis.call('HDEL', WORKERS, unpack(gone))
  end
end

-- A hint is over: closed again, as if it had not been open.
if record.state == 'open' and record.hinted == record.generation and now >= record.till then
  move('closed', true)
  publish()
end
