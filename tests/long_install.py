"""install.sh is killed before each of its commands that changes something; then it is run again."""

import unittest

import test_install


class Installer(test_install.InterruptedTestCase):
    KILLED_AT = ("chmod", "cp", "ln", "mkdir", "mv", "rm", "rmdir", "sync")

    def choose(self, _number):
        """After each of them: the old version, the new one, the uninstallation."""
        old, new = self.versions
        return [(old,), (new,), (new, "--uninstall")]

    def test_an_installation(self):
        self.interrupt((self.versions[0],), False, self.choose)

    def test_an_upgrade(self):
        self.interrupt((self.versions[1],), True, self.choose)

    def test_an_uninstallation(self):
        self.interrupt((self.versions[1], "--uninstall"), True, self.choose)


if __name__ == "__main__":
    unittest.main()
