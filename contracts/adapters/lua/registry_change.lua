-- uses: (nothing)
-- Change one table of the registry; the revision rises only when something is different afterwards.
-- KEYS  R (root of the registry), the pool's event stream
-- ARGV  table (models, deployments, routes, knobs, pipelines), then pairs: name, JSON ("" deletes)
-- reply revision, how many entries changed
-- keys  R:<table> HASH name -> JSON, R:rev STRING counter
local tbl = KEYS[1] .. ':' .. ARGV[1]
local changed = 0
for i = 2, #ARGV, 2 do
  local before = redis.call('HGET', tbl, ARGV[i]) or ''
  if before ~= ARGV[i + 1] then
    changed = changed + 1
    if ARGV[i + 1] == '' then
      redis.call('HDEL', tbl, ARGV[i])
    else
      redis.call('HSET', tbl, ARGV[i], ARGV[i + 1])
    end
  end
end
if changed == 0 then return {redis.call('GET', KEYS[1] .. ':rev') or '0', '0'} end
local revision = redis.call('INCR', KEYS[1] .. ':rev')
redis.call('XADD', KEYS[2], 'MAXLEN', '~', '10000', '*', 'kind', 'registry', 'detail', ARGV[1] .. ' ' .. revision)
return {tostring(revision), tostring(changed)}
