"""00-saved-image gives a managed save a second name until the guest runs again."""

import os
import shutil
import unittest
from pathlib import Path

from harness import CHECKOUT, TestCase, run, snapshot

SCRIPT = CHECKOUT / "qemu_restore_begin_-.d/00-saved-image"
SAVE = Path("/var/lib/libvirt/qemu/save")
RESTORE, STARTED = ("restore", "begin", "-"), ("started", "begin", "-")
USER = 1010


class SavedImage(TestCase):
    def setUp(self):
        super().setUp()
        SAVE.mkdir(parents=True)
        self.addCleanup(shutil.rmtree, SAVE.parent)
        self.addCleanup(SAVE.parent.parent.chmod, 0o755)

    def call(self, phase, guest="web", user=0, **environment):
        as_user = (
            ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
        )
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", **environment}
        return run([*as_user, SCRIPT, guest, *phase], input="<domain/>", env=environment)

    def home(self, guest="web"):
        """The home of a user whose own session has saved a guest; the directory of the image."""
        save = self.directory / "home/.config/libvirt/qemu/save"
        save.mkdir(parents=True)
        (save / f"{guest}.save").write_text("saved")
        self.directory.chmod(0o755)
        for path in (save, save / f"{guest}.save"):
            os.chown(path, USER, USER)
        return self.directory / "home", save

    def test_the_image_has_a_second_name_from_restore_to_started(self):
        for guest in ("web", "vm one", "-f"):
            image, kept = SAVE / f"{guest}.save", SAVE / f"{guest}.save.kept"
            image.write_text("saved")
            kept.write_text("older")
            self.assert_succeeds(self.call(RESTORE, guest))
            self.assertTrue(kept.samefile(image))
            image.unlink()  # as libvirt does
            result = self.call(STARTED, guest)
            self.assert_succeeds(result)
            self.assertIn(str(kept), result.stdout)
        self.assertEqual(os.listdir(SAVE), [])

    def test_a_guest_that_is_not_saved_is_left_alone(self):
        for phase in (RESTORE, STARTED):
            self.assert_succeeds(self.call(phase))
        self.assertEqual(os.listdir(SAVE), [])

    def test_a_users_own_session_has_its_images_at_home(self):
        home, save = self.home()
        (SAVE / "web.save").write_text("the host's")
        before = snapshot(SAVE)
        self.assert_succeeds(self.call(RESTORE, user=USER, HOME=str(home)))
        self.assertTrue((save / "web.save.kept").samefile(save / "web.save"))
        self.assert_succeeds(self.call(STARTED, user=USER, HOME=str(home)))
        self.assertEqual(os.listdir(save), ["web.save"])
        self.assertEqual(snapshot(SAVE), before)

    def test_whatever_the_modes_of_libvirts_directories_a_users_guest_starts(self):
        closed = Path("/var/lib/libvirt")
        for mode in (0o700, 0o711, 0o755):
            for name in ("web.save", "web.save.kept"):
                (SAVE / name).write_text("the host's")
            closed.chmod(mode)
            for home in ({"HOME": str(self.directory)}, {"HOME": "/nowhere"}, {}):
                for phase in (RESTORE, STARTED):
                    with self.subTest(mode=mode, home=home, phase=phase):
                        self.assert_succeeds(self.call(phase, user=USER, **home))
        self.assertEqual(sorted(os.listdir(SAVE)), ["web.save", "web.save.kept"])

    def test_a_name_that_cannot_be_given_is_told_and_keeps_no_guest_from_starting(self):
        (SAVE / "web.save").write_text("saved")
        (SAVE / "web.save.kept").mkdir()
        for phase in (RESTORE, STARTED):
            result = self.call(phase)
            self.assertEqual((result.returncode, result.stdout), (0, ""))
            for part in ("00-saved-image", "web"):
                self.assertIn(part, result.stderr.splitlines()[-1])

    def test_a_dry_run_says_what_it_would_do_and_not_on_stdout_where_the_xml_goes(self):
        for name in ("web.save", "web.save.kept"):
            (SAVE / name).write_text(name)
        before = snapshot(SAVE)
        for phase in (RESTORE, STARTED):
            result = self.call(phase, VIRT_HOOKS_DRY_RUN="1")
            self.assertEqual((result.returncode, result.stdout), (0, ""))
            self.assertIn(f"{SAVE}/web.save.kept", result.stderr)
        self.assertEqual(snapshot(SAVE), before)
        self.assertIn("VIRT_HOOKS_DRY_RUN", SCRIPT.read_text())


if __name__ == "__main__":
    unittest.main()
