"""How priority reaches people beside the result objects. No channel is built yet."""
