"""What a process that is supervised says with its exit code: whether another one in its place may fare better.

Codes of BSD's sysexits.h. Without a supervisor every error ends with the code of its class, mostly 1.
"""

FINAL = 78
"""An error that cannot come right by itself; a bare 1 may be an interpreter that was ended, which is a crash."""
CRASHED = 70
"""It crashed by a fault that is nobody's: a bug, or no memory."""
PASSING = 75
"""An error that may come right by itself (`DistillogError.passing`)."""
