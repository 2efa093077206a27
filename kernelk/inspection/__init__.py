"""What lives in the session, without changing it: inventory, summaries, the tensor list, rich reprs."""
