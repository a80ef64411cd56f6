-- uses: base
-- A worker begins to drain partitions: what launches were lost there, and how often it was begun without getting on.
-- Launches of workers that are gone are counted here, once, per record; records below a start have been answered.
-- KEYS  P
-- ARGV  lease, topic, ttl ms, then partition, start, "1" when records wait…
-- reply {partition, claims, {offset, count, …}}…     count = launches lost + 1000 × those of them that were alone
-- keys  P:flights HASH, P:tries:<topic>/<partition> HASH ttl, P:lease:<id> HASH
local me, topic, ttl = ARGV[1], ARGV[2], ARGV[3]
local starts = {}
for i = 4, #ARGV, 3 do starts[topic .. '/' .. ARGV[i]] = tonumber(ARGV[i + 1]) end

local function blame(name, first, last)
  for offset = math.max(tonumber(first), starts[name]), tonumber(last) do
    redis.call('HINCRBY', P .. ':tries:' .. name, string.format('%.0f', offset), 1)
  end
end

local now, flights = now_ms(), redis.call('HGETALL', P .. ':flights')
for i = 1, #flights, 2 do
  local field, stamp, rest = flights[i], string.match(flights[i + 1], '^(%d+)|(.*)$')
  local owner = string.match(field, '^(.*)/%d+$')
  local state = redis.call('HGET', P .. ':lease:' .. owner, 'state')
  if owner ~= me and (not state or state == 'quarantine') then
    local kept, count = {}, 0
    for name, first, last in string.gmatch(rest, '([^;:]+):(%d+)%-(%d+)') do
      if starts[name] then
        blame(name, first, last)
      else
        kept[#kept + 1] = name .. ':' .. first .. '-' .. last
      end
      count = count + 1
    end
    if #kept == 0 or now - tonumber(stamp) > tonumber(ttl) then
      redis.call('HDEL', P .. ':flights', field)
    elseif #kept < count then
      redis.call('HSET', P .. ':flights', field, stamp .. '|' .. table.concat(kept, ';'))
    end
  end
end

local reply = {}
for i = 4, #ARGV, 3 do
  local key = P .. ':tries:' .. topic .. '/' .. ARGV[i]
  local start = tonumber(ARGV[i + 1])
  local claims = 0
  if ARGV[i + 2] == '1' then claims = redis.call('HINCRBY', key, 'claims', 1) end
  local found, all = {}, redis.call('HGETALL', key)
  for j = 1, #all, 2 do
    if all[j] ~= 'claims' then
      if tonumber(all[j]) < start then
        redis.call('HDEL', key, all[j])
      else
        found[#found + 1] = all[j]
        found[#found + 1] = all[j + 1]
      end
    end
  end
  redis.call('PEXPIRE', key, ttl)
  reply[#reply + 1] = {ARGV[i], claims, found}
end
return reply
