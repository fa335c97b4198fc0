-- A worker is here and, unless `vote` is empty, has seen how a request ended in the closed state.
--
-- The quorum. The circuit opens for everybody when the fleet as a whole meets the rule of one
-- breaker (`fail_max` failures with no success between them, or the share of its window), and it
-- is not one worker's word alone:
--   in a row: at least one of the failures was an answer of the service, which no trouble of the
--     worker's own network can make up; or two workers have failed;
--   by share: the rule holds for the others too, the worker with most failures left out.
-- A worker that is alone (no other one is there, be it idle or still waiting for its first image)
-- decides alone. Where the quorum is missing, only that worker's own breaker opens, for itself; the
-- row stands until a success, so the next failure of any other worker opens for everybody.
--
-- ARGV  epoch, generation, vote ('', success, failure), weight, answered (0, 1), share (0, 1),
--       calls and failures in this worker's window, pause, cause, brief,
--       fail_max, failure_rate, min_calls
local vote, weight, answered, share = ARGV[6], tonumber(ARGV[7]), ARGV[8] == '1', ARGV[9] == '1'
local calls, failures = ARGV[10], ARGV[11]
local pause, cause, brief = tonumber(ARGV[12]), ARGV[13], ARGV[14]
local fail_max, rate, min_calls = tonumber(ARGV[15]), tonumber(ARGV[16]), tonumber(ARGV[17])

local current = same(ARGV[4], ARGV[5])
if not current then
  calls, failures = '0', '0'  -- they belong to a state that is over
end
touch(calls, failures)

-- Whether the share of failures is too large: in all, and without the worker with most of them.
local function too_large_a_share(lone)
  local calls, failures, worst = 0, 0, {calls = 0, failures = 0}
  for _, worker in ipairs(workers()) do
    if worker.generation == record.generation then
      calls, failures = calls + worker.calls, failures + worker.failures
      if worker.failures > worst.failures then
        worst = worker
      end
    end
  end
  local rest = calls - worst.calls
  return calls >= min_calls and failures >= rate * calls
    and (lone or (rest > 0 and failures - worst.failures >= rate * rest))
end

local function quorum(sole)
  local lone = alone()
  return record.streak >= fail_max and (record.answered == 1 or not sole or lone)
    or share and too_large_a_share(lone)
end

if current and record.state == 'closed' then
  if vote == 'success' then
    record.streak, record.witness, record.answered = 0, '', 0
  elseif vote == 'failure' then
    record.streak = record.streak + weight
    if answered then
      record.answered = 1
    end
    if quorum(sole_witness()) then
      open(pause, cause, brief)
    end
  end
end
save()
return told()
