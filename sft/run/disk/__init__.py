"""Files and directories written whole or not at all, their checksums, and what a disk refuses told in one line."""
