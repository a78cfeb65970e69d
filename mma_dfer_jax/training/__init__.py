"""How a run goes: its data, its steps, what it leaves on disk and for people."""
