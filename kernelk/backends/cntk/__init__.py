"""CNTK 2.7: a program becomes CNTK Functions on known shapes, and numpy's definitions where CNTK isn't exact."""
