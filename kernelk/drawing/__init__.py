"""A graph as boxes, grouped, laid out, as SVG or text; and what each engine made of it."""
