"""Coverage-guided fuzzing of what reads others' bytes: `python -m tests.fuzz [TARGET ...]`.

A target takes bytes. It may raise the errors of the product, which it swallows; anything else, or an
invariant that does not hold, is a finding. Inputs that found something lie in corpus/TARGET and are
run by tests/hostile/test_guided.py for ever.
"""
