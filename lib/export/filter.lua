-- What pandoc alone gets wrong: formulas, HTML outputs, captions, the types of columns, pictures in Typst.

local typst = FORMAT == 'typst'

local function pair(left, right)
  return function(body)
    return not body:gsub('%b{}', ''):gsub('%b()', ''):find '[%[%]{}()&]' and left .. body .. right or nil
  end
end

local tex_rewrites = {  -- labels, and bars: pandoc spaces them like relations unless it is told which ones pair
  {'\\label%b{}', ''}, {'\\[lr]?Vert%f[%A]', '\\|'}, {'\\[lr]?vert%f[%A]', '|'},
  {'\\[bB]igg?[lrm]?%s*(\\?|)', '%1'}, {'\\middle%s*|', '\\middle\\vert '},
  {'\\left%s*\\|', '\\left\\Vert '}, {'\\right%s*\\|', '\\right\\Vert '},
  {'\\left%s*|', '\\left\\vert '}, {'\\right%s*|', '\\right\\vert '},
  {'\\|(.-)\\|', pair('\\lVert ', '\\rVert ')}, {'\\|', '\\parallel '},
  {'|([^|]-)|', pair('\\left\\vert ', '\\right\\vert ')},
}
local typst_rewrites = {  -- symbols that Typst 0.15 renamed, spaces rounded to whole ems, big delimiters, operators
  {'%.circle%f[^%w]', '.o'}, {'%f[%w]sect%f[%W]', 'inter'}, {'bracket%.([lr])%.double', 'bracket.%1.stroked'},
  {'delim: "||"', 'delim: "|"'}, {'#h%(%-1em%)', '#h(-0.17em)'}, {'#h%(0em%)', 'thick'},
  {'#scale%(x: (%d)(%d)0%%, y: %d+%%%)%[\\?(.)%]', 'lr(size: #%1.%2em, \\%3)'},
  {'(%a*%(?)("%a[^"]*")', function(before, name)  -- \operatorname, not \text
    local text = #before > 1 and ('upright( bold( italic( mono( sans('):find(before, 1, true)
    return not text and before .. 'op(' .. name .. (name:find '^"arg' and ', limits: #true)' or ')') or nil
  end},
  {'%^(%b())%^(%b())', function(a, b) return '^(' .. a:sub(2, -2) .. ' ' .. b:sub(2, -2) .. ')' end},
  {'%^(%b())%^(%w+)', function(a, b) return '^(' .. a:sub(2, -2) .. ' ' .. b .. ')' end},
}

local function rewrite(text, rules)
  for _, rule in ipairs(rules) do text = text:gsub(rule[1], rule[2]) end
  return text
end

local function quoted(text)
  return '"' .. text:gsub('[\\"]', '\\%0'):gsub('%s+', ' ') .. '"'
end

local function raw(text)
  return pandoc.RawBlock('typst', text)
end

-- First the HTML of outputs becomes blocks like others.

local function flatten(blocks, result)  -- without divisions, and without what pandoc cannot read, such as styles
  for _, block in ipairs(blocks) do
    if block.t == 'Div' then
      flatten(block.content, result)
    elseif block.t ~= 'Plain' then
      result:insert(block)
    elseif block.content:find_if(function(inline) return inline.t ~= 'Space' and inline.t ~= 'SoftBreak' end) then
      result:insert(pandoc.Para(block.content))
    end
  end
  return result
end

local first = {
  RawBlock = function(el)
    if el.format ~= 'html' then return end
    local blocks = pandoc.read(el.text, 'html+tex_math_dollars').blocks
    return flatten(blocks:walk {RawInline = function() return {} end}, pandoc.Blocks{})
  end,
  RawInline = function(el)
    if el.format ~= 'html' or el.text:find '^<!%-%-#' then return end
    return pandoc.utils.blocks_to_inlines(pandoc.read(el.text, 'html').blocks)
  end,
}

-- Then tables, and the captions beside tables and pictures.

local function numeric(text)
  return utf8.len(text) < 24 and (text == '' or text == 'NaN' or text == '–' or text:match '^[-+−]*%d' ~= nil)
end

local function blank(cell)
  return not pandoc.utils.stringify(cell.contents):gsub('\u{A0}', ' '):find '%S'
end

local function disjoint(above, below)
  for i, cell in ipairs(below.cells) do
    local other = above.cells[i]
    if not other or other.col_span > 1 or not (blank(other) or blank(cell)) then return false end
  end
  return true
end

local function join_headings(head)  -- pandas puts the name of the index into a row of its own
  local above, below = head.rows[#head.rows - 1], head.rows[#head.rows]
  if not above or not disjoint(above, below) then return end
  for i, cell in ipairs(below.cells) do
    if blank(cell) then cell.contents = above.cells[i].contents end
  end
  head.rows:remove(#head.rows - 1)
end

local function stack(heading)  -- narrow headings for a wide table: learning_rate takes two lines
  local words = heading:walk {Str = function(el) return pandoc.Inlines((el.text:gsub('_(.)', '_ %1'))) end}
  return words:walk {Space = function() return pandoc.LineBreak() end}
end

local function each_cell(rows, visit)
  for _, row in ipairs(rows) do
    for i, cell in ipairs(row.cells) do visit(cell, i, pandoc.utils.stringify(cell.contents)) end
  end
end

local function align_columns(el)
  local longest, numbers, total, prose, roots = {}, {}, 0, 0, 0
  for _, body in ipairs(el.bodies) do
    each_cell(body.body, function(_, i, text)
      longest[i], numbers[i] = math.max(longest[i] or 0, #text), numbers[i] ~= false and numeric(text)
    end)
  end
  for i, length in ipairs(longest) do
    el.colspecs[i][1] = numbers[i] and 'AlignRight' or 'AlignLeft'
    total = total + length + 4
    if length > 40 then prose, roots = prose + length, roots + length ^ 0.5 end
  end
  for i, length in ipairs(typst and total > 100 and longest or {}) do  -- too wide: columns of prose share the rest
    if length > 40 then el.colspecs[i][2] = length ^ 0.5 / roots * math.max(0.3, 1 - (total - prose) / 110) end
  end
end

local function table_(el)
  join_headings(el.head)
  align_columns(el)
  each_cell(el.head.rows, function(cell)
    if cell.col_span > 1 then cell.alignment = 'AlignCenter' end
    if #el.colspecs > 7 then cell.contents = stack(cell.contents) end
  end)
  return el
end

local function caption_of(block, kind)  -- the inlines and the name of a caption, if this block is one
  local head = block and block.t == 'Para' and block.content[1]
  if not head or head.t ~= 'Strong' or not pandoc.utils.stringify(head):find('^' .. kind .. '[ %d?]*%.$') then return end
  local inlines, name = block.content:clone(), ''
  if #inlines > 1 and inlines[2].t == 'RawInline' then name = inlines:remove(2).text:match '#(.-)%-%->' end
  return inlines, name
end

local function picture_of(block)
  if block.t == 'Figure' then block = block.content[1] end
  local is = block and (block.t == 'Para' or block.t == 'Plain') and #block.content == 1 and block.content[1].t == 'Image'
  return is and block.content[1]
end

local function figure(image, caption, name)
  if caption then  -- is the alternative text, too, without its number
    local text = pandoc.write(pandoc.Pandoc{pandoc.Plain{table.unpack(caption, 2)}}, 'plain', {wrap_text = 'none'})
    image.caption = pandoc.Inlines(text:gsub('^%s+', ''):gsub('%s+$', ''))
  elseif #image.caption == 0 then
    image.caption = pandoc.Inlines 'A picture without a caption'
  end
  return pandoc.Figure(pandoc.Plain(image), {long = caption and {pandoc.Plain(caption)} or {}}, pandoc.Attr(name or ''))
end

local second = {
  Table = table_,
  Blocks = function(blocks)
    local result, i = pandoc.Blocks{}, 1
    while i <= #blocks do
      local block, after = blocks[i], blocks[i + 1]
      local image = picture_of(block)
      local caption, name = caption_of(image and after or block, image and 'Figure' or 'Table')
      local shown = after and after.t == 'CodeBlock' and blocks[i + 2] or after  -- a cell's code may come between
      if image then
        block = figure(image, caption, name)
      elseif caption and shown and shown.t == 'Table' then
        if shown ~= after then result:insert(after) end
        block, i = shown, shown ~= after and i + 1 or i
        block.caption, block.identifier = {long = {pandoc.Plain(caption)}}, name
      else
        caption, name = caption_of(block, '%a+')
        if caption then block = pandoc.Para{pandoc.Span(caption, {id = name})} end  -- of nothing, yet links lead to it
        caption = nil
      end
      result:insert(block)
      i = i + (caption and 2 or 1)
    end
    return result
  end,
  Pandoc = function(doc)
    local top, numbered, above, taken = 6, false, 0, {}
    doc:walk {Header = function(h)
      top, numbered = math.min(top, h.level), numbered or pandoc.utils.stringify(h):match '^Q%a*%s*%d'
    end}
    if numbered and typst then doc.blocks:insert(1, raw '#set heading(numbering: none)') end
    return doc:walk {Header = function(h)
      above = math.min(h.level - top, above) + 1  -- no level is left out
      h.level = above - 1 + (typst and 1 or 2)
      local name = pandoc.utils.stringify(h):gsub('%s+', '-')  -- as in Jupyter, whose links then work here
      taken[name] = (taken[name] or 0) + 1
      h.identifier = name .. (taken[name] > 1 and '-' .. taken[name] or '')
      return h
    end}
  end,
}

-- Then formulas, which for Typst are rewritten here, and spaces at which no line ends.

local function formula(el)
  local source = el.text
  local tag = source:match '\\tag(%b{})'
  el.text = rewrite(source:gsub('\\tag%b{}', ''), tex_rewrites)
  local number = tag and '(' .. tag:sub(2, -2) .. ')'
  if not typst then
    local shown = el.mathtype == 'DisplayMath' and pandoc.Span(el, {class = 'formula'}) or el
    return number and {pandoc.Span(number, {class = 'equation-number'}), shown} or shown
  end
  local text = rewrite(pandoc.write(pandoc.Pandoc{pandoc.Plain{el}}, 'typst'), typst_rewrites)
  local numbering = number and 'numbering: _ => [' .. number .. '], ' or ''
  return pandoc.RawInline('typst', '#[#set math.equation(' .. numbering .. 'alt: ' .. quoted(source) .. ')\n' .. text .. ']')
end

local numbered = {Figure = true, Figures = true, Table = true, Tables = true, Question = true}

local function join_numbers(inlines)  -- no line ends before %, around = or between Figure and its number
  for i = 2, #inlines - 1 do
    local before, after = inlines[i - 1].text or '', inlines[i + 1].text or ''
    local space = inlines[i].t == 'Space' or inlines[i].t == 'SoftBreak'
    local number = after:find '^%%' or numbered[before] and after:find '^%d'
    if space and (number or before == '=' or after == '=') then inlines[i] = pandoc.Str '\u{A0}' end
  end
  return inlines
end

local third = {Math = formula, Inlines = join_numbers}

-- Last what only Typst needs: files that it can read, floats, parts and the place of the contents.

local pictures = {}

local function decoded(address)
  return (address:gsub('%%(%x%x)', function(code) return string.char(tonumber(code, 16)) end))
end

local function image_call(image)
  if not pictures[image.src] then
    local kind, data = pandoc.mediabag.fetch(decoded(image.src))
    local name = pandoc.utils.sha1(data) .. '.' .. (kind:match 'svg' or kind:match '/(%w+)')
    local file = assert(io.open(name, 'wb'))
    assert(file:write(data))
    file:close()
    pictures[image.src] = name
  end
  local width = image.attributes.width and ', width: ' .. image.attributes.width:gsub('px', '') * 0.75 .. 'pt' or ''
  return 'image("' .. pictures[image.src] .. '", alt: ' .. quoted(pandoc.utils.stringify(image.caption)) .. width .. ')'
end

local for_typst = {
  traverse = 'topdown',
  Figure = function(el)
    local call = image_call(picture_of(el))
    if #el.caption.long == 0 then return raw('#align(center, ' .. call .. ')'), false end
    local label = el.identifier ~= '' and ' <' .. el.identifier .. '>' or ''
    local caption = pandoc.write(pandoc.Pandoc(el.caption.long), 'typst'):gsub('%s+$', '')
    return raw('#figure(' .. call .. ', caption: [' .. caption .. '])' .. label), false
  end,
  Link = function(el)
    if el.target:find '^#' then el.target = decoded(el.target) end
    return el
  end,
  Image = function(el)
    return pandoc.RawInline('typst', '#box(' .. image_call(el) .. ')'), false
  end,
  Table = function(el)
    local rows = 0
    for _, body in ipairs(el.bodies) do rows = rows + #body.body end
    if rows > 25 and #el.caption.long > 0 then return {raw '#[#set figure(placement: none)', el, raw ']'}, false end
  end,
  Pandoc = function(doc)
    local contents, result = nil, pandoc.Blocks{}
    for i, block in ipairs(doc.blocks) do
      local heading = block.t == 'Header' and pandoc.utils.stringify(block)
      if heading and (not contents or heading:find '^Question' and not contents.question) then
        contents = {at = #result + 1, question = heading:find '^Question'}
      end
      if heading and (heading:find '^Appendix' or heading:find '^Question' or heading == 'References') then
        result:insert(raw '#place.flush()')  -- figures do not cross it
      end
      result:insert(block)
    end
    if contents then result:insert(contents.at, raw '#contents') end
    return pandoc.Pandoc(result, doc.meta)
  end,
}

-- And what only HTML needs: a table wider than a telephone scrolls in a box of its own, below its caption.

local function html(text)
  return pandoc.RawBlock('html', text)
end

local for_html = {
  Table = function(el)
    local caption, name = el.caption.long, el.identifier
    el.caption, el.identifier = {long = {}}, ''
    local box = pandoc.Div(el, {class = 'table', tabindex = '0'})
    if #caption == 0 then return box end
    local opening = name ~= '' and '<figure id="' .. name .. '">' or '<figure>'
    return {html(opening .. '<figcaption>'), caption[1], html '</figcaption>', box, html '</figure>'}
  end,
  Header = function(el)
    if pandoc.utils.stringify(el):find '^Appendix' then el.classes:insert 'appendix' end
    return el
  end,
}
return {first, second, third, typst and for_typst or for_html}
