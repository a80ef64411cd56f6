-- uses: (nothing)
-- Lease one free partition of an inbox, looking from a random one on.
-- KEYS  B (root of the inbox)
-- ARGV  token, ttl ms, partitions, first partition to try
-- reply OK partition | FULL
-- keys  B:<partition> STRING token, ttl
local count, first = tonumber(ARGV[3]), tonumber(ARGV[4])
for i = 0, count - 1 do
  local partition = (first + i) % count
  if redis.call('SET', KEYS[1] .. ':' .. partition, ARGV[1], 'NX', 'PX', ARGV[2]) then
    return {'OK', tostring(partition)}
  end
end
return {'FULL'}
