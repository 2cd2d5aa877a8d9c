"""The crash matrix: a server that dies at every one of its durable writes, and what must hold afterwards.

    python -m perdure.testing.crash

A *life* (``life``) is one state folder with a real perdured on a real database, from the start of its runs
(``workload``) to the end of all of them, and the deaths in between. ``checks`` says what must hold after it. The
*matrix* is one life for each named point (``points``) and moment, and some with deaths at random instants.
"""
