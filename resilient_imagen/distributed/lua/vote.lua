-- A heartbeat, with the outcome of a request in the closed state unless `vote` is empty.
--
-- The quorum: the breaker opens for all workers when all of them together meet the rule of one
-- breaker (`fail_max` failures without a success between them, or the failure rate), and if more
-- than one witness is behind it. A witness is a host, or a process if all workers are on one host.
--   Consecutive failures: the service itself reported at least one of them, which no problem of a
--     worker's network can imitate; or two witnesses failed.
--   Failure rate: the rule also holds without the witness that has the most failures.
-- If no other process is present, one witness is sufficient. Without a quorum, only the worker's
-- own breaker opens. The consecutive failures are kept until a success, so the next failure of
-- another witness opens the breaker for all.
--
-- args  vote ('', success, failure), weight, answered (bool), share (bool: the outcome is in the
--       window), calls and failures in the worker's window, pause (open period), cause, summary,
--       fail_max, failure_rate, min_calls
local current = is_current()
touch(current and args.calls, current and args.failures)

local function failure_rate_exceeded(alone)
  local several_hosts = others_present()
  local calls, failures, groups, worst = 0, 0, {}, {calls = 0, failures = 0}
  local entries = redis.call('HGETALL', WORKERS)
  for i = 1, #entries, 2 do
    local generation, its_calls, its_failures = string.match(entries[i + 1], '(%d+):(%d+):(%d+)')
    if tonumber(generation) == record.generation then
      local name = witness_of(entries[i], several_hosts)
      local group = groups[name] or {calls = 0, failures = 0}
      groups[name] = group
      group.calls, group.failures = group.calls + its_calls, group.failures + its_failures
      calls, failures = calls + its_calls, failures + its_failures
      if group.failures > worst.failures then
        worst = group
      end
    end
  end
  local rest = calls - worst.calls
  return calls >= args.min_calls and failures >= args.failure_rate * calls
    and (alone or (rest > 0 and failures - worst.failures >= args.failure_rate * rest))
end

if current and record.state == 'closed' then
  if args.vote == 'success' then
    record.streak, record.witness, record.answered = 0, '', 0
  elseif args.vote == 'failure' then
    record.streak = record.streak + args.weight
    if args.answered then
      record.answered = 1
    end
    local sole, alone = add_witness()
    if record.streak >= args.fail_max and (record.answered == 1 or not sole or alone)
      or args.share and failure_rate_exceeded(alone) then
      open(args.pause, args.cause, args.summary)
    end
  end
end
save()
return reply()
