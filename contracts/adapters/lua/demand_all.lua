-- uses: base
-- What was asked of each deployment.
-- KEYS  P
-- ARGV  (none)
-- reply msgpack: [[deployment, [field, value, …]], …]
-- keys  P:demands SET, P:demand:<model>.<version> HASH
local found = {}
for _, name in ipairs(redis.call('SMEMBERS', P .. ':demands')) do
  found[#found + 1] = {name, redis.call('HGETALL', P .. ':demand:' .. string.gsub(name, '@', '.'))}
end
return cmsgpack.pack(found)
