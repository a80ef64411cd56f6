-- uses: base
-- Fix the number of workers of a deployment by hand, or give it back to its spec and the autoscaler.
-- KEYS  P
-- ARGV  deployment "name@version", its key part "name.version", workers ("" for none), reason
-- reply OK
-- keys  P:demands SET, P:demand:<model>.<version> HASH manual, reason, since
local key = P .. ':demand:' .. ARGV[2]
if ARGV[3] ~= '' then
  redis.call('HSET', key, 'manual', ARGV[3], 'reason', ARGV[4], 'since', fmt(now_ms()))
  redis.call('SADD', P .. ':demands', ARGV[1])
else
  redis.call('DEL', key)
  redis.call('SREM', P .. ':demands', ARGV[1])
end
event('demand', 'detail', ARGV[1])
return {'OK'}
