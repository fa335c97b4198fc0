-- Start of every breaker script: read the record, and define its changes.
-- KEYS  circuit (hash), leases (sorted set: token by deadline), workers (hash: counts of each
--       worker), seen (sorted set: worker by the time of its last command)
-- args  protocol, worker (host/process/number), channel, route, settings, and the last record that
--       the worker received: epoch, version, generation
local CIRCUIT, LEASES, WORKERS, SEEN = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local KEEP = 3600 * 1000000       -- how long an unused record is kept
local SHORTEST_LEASE = 50 * 1000  -- the shortest wait for a lease, so that no worker asks in a loop

local protocol = number_of(redis.call('HGET', CIRCUIT, 'protocol') or '0', 0)
if is_foreign(protocol, SEEN) then
  return cjson.encode({protocol = protocol})
end

local function new_record()
  return {
    protocol = args.protocol, epoch = whole(now) .. '-' .. args.worker, version = 0,
    generation = 1, state = 'closed', since = now, till = now, openings = 0, cause = '',
    summary = '', streak = 0, witness = '', answered = 0, places = 1, successes = 0, at = now,
    settings = '',  -- of the worker that sent the latest command
    hinted = 0,     -- the generation of the latest open period that ends in the closed state
  }
end

local record = new_record()
local stored = redis.call('HGETALL', CIRCUIT)
for i = 1, #stored, 2 do
  local name, value = stored[i], stored[i + 1]
  local number = type(record[name]) == 'number'
  record[name] = number and number_of(value, record[name]) or not number and value or record[name]
end
record.protocol = args.protocol
if record.state ~= 'open' and record.state ~= 'half_open' then
  record.state = 'closed'
end

-- The worker has received a record that this server does not know: the server lost writes, because
-- it restarted from an older snapshot or was promoted while it was behind. A new epoch begins, as
-- after the loss of all data, because workers ignore older versions of the same epoch.
local lost = args.epoch == record.epoch and (
  args.version > record.version or args.generation > record.generation
  or args.version == record.version and args.generation ~= record.generation)
if lost then
  record = new_record()
  redis.call('DEL', LEASES)
end

-- The server's clock was set back, or another server took over: every time moves with it, so that
-- the remaining durations stay the same.
local back = record.at - now
if back > 0 then
  record.since, record.till = record.since - back, record.till - back
  for _, key in ipairs({LEASES, SEEN}) do
    for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do
      redis.call('ZINCRBY', key, whole(-back), member)
    end
  end
end

-- Remove expired leases, and leases that end later than any worker can have requested.
redis.call('ZREMRANGEBYSCORE', LEASES, '-inf', whole(now))
redis.call('ZREMRANGEBYSCORE', LEASES, whole(now + KEEP), '+inf')

local function probes_taken()
  return redis.call('ZCARD', LEASES) + record.successes >= record.places
end

local other_settings = ''

-- The answer to every command, and the message to all workers. It has durations, never times.
local function reply(granted)
  local lease = 0
  if record.state == 'half_open' and probes_taken() then
    local first = redis.call('ZRANGE', LEASES, 0, 0, 'WITHSCORES')
    lease = math.max(first[2] and tonumber(first[2]) - now or 0, SHORTEST_LEASE)
  end
  return cjson.encode({
    protocol = record.protocol, route = args.route, epoch = record.epoch,
    version = record.version, generation = record.generation, state = record.state,
    left = math.max(record.till - now, 0), openings = record.openings,
    closes = record.hinted == record.generation,
    cause = record.cause, summary = record.summary, lease = lease,
    workers = redis.call('ZCARD', SEEN), settings = other_settings, granted = granted or false,
  })
end

-- Publish a new version of the record.
local function publish()
  record.version = record.version + 1
  redis.call('PUBLISH', args.channel, reply())
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

-- Return whether the worker's outcomes belong to the present state. After lost writes the worker
-- knows the present better than the record.
local function is_current()
  return lost or args.epoch == record.epoch and args.generation == record.generation
end

-- Enter a state. With `keep_counts`, consecutive failures continue to count.
local function move(state, keep_counts)
  record.state, record.since, record.till = state, now, now
  record.generation = record.generation + 1
  if not keep_counts then
    record.streak, record.witness, record.answered = 0, '', 0
  end
  record.successes = 0
  redis.call('DEL', LEASES)
  if state == 'closed' then
    record.openings, record.cause, record.summary = 0, '', ''
  end
end

-- Open for `seconds` from now; if it is open already, until the later of both ends. With `closes`
-- (a server's hint) the open period ends in the closed state, unless another failure extends it.
local function open(seconds, cause, summary, closes)
  local longer = now + seconds > record.till
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
    record.till = now + seconds
    record.cause, record.summary = cause, summary
  end
  publish()
end

-- Return the host and the process of a worker's name.
local function place_of(worker)
  local host, process = string.match(worker, '^([^/]*)/([^/]*)')
  return host or worker, (host or worker) .. '/' .. (process or worker)
end

-- Return whether workers of another host, and of another process, are present.
local function others_present()
  local host, process = place_of(args.worker)
  local other_host, other_process = false, false
  for _, worker in ipairs(redis.call('ZRANGE', SEEN, 0, -1)) do
    local its_host, its_process = place_of(worker)
    other_host = other_host or its_host ~= host
    other_process = other_process or its_process ~= process
  end
  return other_host, other_process
end

-- Return the witness that a worker is: its host, because processes of one host share its network;
-- its process, if all workers are on one host.
local function witness_of(worker, several_hosts)
  local host, process = place_of(worker)
  return several_hosts and host or process
end

-- Record that this worker saw a failure. Return whether it is the only witness since the last
-- success or, in the half-open state, since the state began; and whether there can be no other.
local function add_witness()
  local several_hosts, several_processes = others_present()
  if record.witness == '' then
    record.witness = args.worker
  elseif record.witness ~= '*' and
    witness_of(record.witness, several_hosts) ~= witness_of(args.worker, several_hosts) then
    record.witness = '*'
  end
  return record.witness ~= '*', not several_processes
end

-- Record that the worker is present and what it has counted, and forget workers that are silent.
local function touch(calls, failures)
  redis.call('HSET', WORKERS, args.worker,
    whole(record.generation) .. ':' .. whole(calls or 0) .. ':' .. whole(failures or 0))
  redis.call('ZADD', SEEN, whole(now), args.worker)
  local gone = redis.call('ZRANGEBYSCORE', SEEN, '-inf', whole(now - LIVE), 'LIMIT', 0, 1000)
  if #gone > 0 then
    redis.call('ZREM', SEEN, unpack(gone))
    redis.call('HDEL', WORKERS, unpack(gone))
  end
  other_settings, record.settings = record.settings, args.settings
end

if record.state == 'open' and record.hinted == record.generation and now >= record.till then
  -- A server's hint has ended: closed again, as if it had not been open.
  move('closed', true)
  publish()
elseif record.state == 'half_open' and record.successes >= record.places then
  move('closed')
  publish()
end
