"""10-mkdirs creates what it is asked for, and nothing else."""

import unittest

from harness import TestCase


class Mkdirs(TestCase):
    def test_it_creates_a_directory_and_its_parents(self):
        result = self.run_script("10-mkdirs", f"<mkdirs><dir>{self.directory}/a/b</dir></mkdirs>")
        self.assert_succeeds(result)
        for path in ("a", "a/b"):
            status = (self.directory / path).stat()
            self.assertEqual((status.st_mode, status.st_uid, status.st_gid), (0o40755, 0, 0))


if __name__ == "__main__":
    unittest.main()
