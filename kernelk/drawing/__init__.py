"""Draws graphs: boxes of nodes, grouped, laid out, as SVG or text; and shows each engine's compiled form of a graph.

The way of a drawing: `boxes`, `grouping`, `layout`, `svg` or `text`, all called by `drawing.draw`. Nothing is imported
here: a magic imports its twin when it is called.
"""
