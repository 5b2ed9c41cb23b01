"""examples/web.xml: that it runs as the README says."""

import shutil
import unittest
from pathlib import Path
from xml.etree import ElementTree

from harness import CHECKOUT, NAMESPACE, mount_points
from libvirt import HOOKS, install, root_directory, start_libvirtd, virsh, wait_until
from scripts import ScriptCase

EXAMPLE = CHECKOUT / "examples/web.xml"


class Example(ScriptCase):
    def test_it_is_well_formed_and_uses_all_five_elements(self):
        hooks = ElementTree.parse(EXAMPLE).find(f"metadata/{{{NAMESPACE}}}hooks")
        names = [element.tag.rpartition("}")[2] for element in hooks]
        self.assertEqual(names, ["mkdirs", "ramdisk", "preload", "archive", "post-rm-rf"])

    def test_every_script_takes_its_element(self):
        for path in ("/srv/golden/web", "/srv/web/log"):
            Path(path).mkdir(parents=True)
            self.addCleanup(shutil.rmtree, Path(path).parent)
        for name in ("10-mkdirs", "20-ramdisk", "30-preload", "10-archive", "30-post-rm-rf"):
            with self.subTest(script=name):
                # a comment before <domain> is no way for call() to know it
                xml = EXAMPLE.read_text().partition("-->\n")[2]
                result = self.call(xml, name=name, dry_run=True)
                self.assert_succeeds(result)
                self.assertIn("/srv/", result.stdout)

    def test_libvirt_runs_it_with_the_hooks_that_were_installed_while_libvirt_ran(self):
        web, golden, archive = Path("/srv/web"), Path("/srv/golden"), Path("/srv/archive")
        for directory in (web, golden, archive, HOOKS):
            self.addCleanup(shutil.rmtree, directory, ignore_errors=True)
        start_libvirtd(self.addCleanup)
        install()
        root_directory(web / "rootfs")
        (golden / "web").mkdir(parents=True)
        (golden / "web/greeting").write_text("Hello\n")
        self.assert_succeeds(virsh("define", "--validate", EXAMPLE))
        self.addCleanup(virsh, "undefine", "web")

        self.assert_succeeds(virsh("start", "web"))
        log = web / "log/greetings"
        wait_until(lambda: log.exists() and log.read_text())
        self.assertEqual(log.read_text(), "Hello\n")
        self.assertIn("/srv/web/www", mount_points())
        self.assert_succeeds(virsh("destroy", "web"))
        self.assertEqual([path.name for path in web.iterdir()], ["rootfs"])
        self.assertEqual(next(archive.glob("web/*/greetings")).read_text(), "Hello\n")

        install("--uninstall")
        for name in ("log", "www"):
            (web / name).mkdir()
        self.assert_succeeds(virsh("start", "web"))  # fails if libvirt still looks for the hook
        self.assertNotIn("/srv/web/www", mount_points())
        self.assert_succeeds(virsh("destroy", "web"))


if __name__ == "__main__":
    unittest.main()
