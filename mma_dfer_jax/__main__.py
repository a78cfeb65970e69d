"""Lists the commands, or runs one: python -m mma_dfer_jax [COMMAND …]."""

import runpy
import sys

from mma_dfer_jax.help import commands
from mma_dfer_jax.streams import make_lasting

make_lasting()
found = commands()
if not sys.argv[1:] or sys.argv[1] in ("-h", "-help", "--help"):
  lines = ["python -m mma_dfer_jax COMMAND …; COMMAND --help tells more. The commands:", ""]
  print("\n".join(lines + [f"  {name:<16}{words}" for name, words in found.items()]))
elif sys.argv[1] in found:
  del sys.argv[0]  # the command finds its own arguments; run_module puts its file in front
  runpy.run_module(f"mma_dfer_jax.{sys.argv[0]}", run_name="__main__", alter_sys=True)
else:
  print(f"error: there is no command {sys.argv[1]!r}; there are {', '.join(found)}", file=sys.stderr)
  sys.exit(2)
