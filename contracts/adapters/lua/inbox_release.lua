-- uses: (nothing)
-- Stop reading a partition of an inbox.
-- KEYS  B (root of the inbox)
-- ARGV  partition, token
-- reply OK | FENCED
-- keys  B:<partition> STRING token
local key = KEYS[1] .. ':' .. ARGV[1]
if redis.call('GET', key) ~= ARGV[2] then return {'FENCED'} end
redis.call('DEL', key)
return {'OK'}
