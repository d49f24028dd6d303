"""How models write tool calls: a row of `table.FORMATS` each, with a parser of what comes and a grammar of what may."""
