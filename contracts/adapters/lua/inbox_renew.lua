-- uses: (nothing)
-- Go on reading a partition of an inbox; one that lapsed and that nobody took is taken again.
-- KEYS  B (root of the inbox)
-- ARGV  partition, token, ttl ms
-- reply OK | FENCED
-- keys  B:<partition> STRING token, ttl
local key = KEYS[1] .. ':' .. ARGV[1]
local holder = redis.call('GET', key)
if holder and holder ~= ARGV[2] then return {'FENCED'} end
redis.call('SET', key, ARGV[2], 'PX', ARGV[3])
return {'OK'}
