-- The opening lasts longer than the worker's settings and any believable hint allow, so that no
-- worker can have meant it (damaged or forged): it is over.
-- ARGV  epoch, generation, longest (duration)
touch('0', '0')
if same(ARGV[4], ARGV[5]) and record.state == 'open'
  and record.till - now > tonumber(ARGV[6]) then
  record.till = now
  publish()
end
save()
return told()
