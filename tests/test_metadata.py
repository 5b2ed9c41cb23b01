"""How the scripts find their elements in the guest's metadata, and what is an error in them."""

import functools
import os
import re
import unittest

from harness import NAMESPACE, SCRIPTS, network_state, run
from scripts import ScriptCase, dircopy, directory, guest_xml, put_copy_over_etc, uuid_of


def setUpModule():
    put_copy_over_etc()


def of_each_script(test):
    """A test of each script, by its name."""

    @functools.wraps(test)
    def test_all(self):
        for self.SCRIPT in SCRIPTS:
            with self.subTest(script=self.SCRIPT):
                test(self)

    return test_all


def in_metadata(metadata):
    return guest_xml("").replace(f'<hooks xmlns="{NAMESPACE}"></hooks>', metadata)


def hooks(content):
    return f'<hooks xmlns="{NAMESPACE}">{content}</hooks>'


def prefixed(prefix, content):
    """The content of <hooks> as "virsh metadata --set" stores it, with a prefix everywhere."""
    inner = re.sub(r"<(/?)([a-z])", rf"<\1{prefix}:\2", content)
    return f'<{prefix}:hooks xmlns:{prefix}="{NAMESPACE}">{inner}</{prefix}:hooks>'


class Metadata(ScriptCase):
    def setUp(self):
        super().setUp()
        for path in ("src", "gone", "src2", "gone2"):
            self.write(f"{path}/file", "text")
        for path in ("disk", "disk2"):
            (self.directory / path).mkdir()

    def everything(self):
        of_network = network_state() if "start" in SCRIPTS[self.SCRIPT] else {}
        return *super().everything(), of_network

    @property
    def name(self):
        """The name of the script's element."""
        return self.SCRIPT.partition("-")[2]

    def element(self, suffix=""):
        """An element that the script has something to do for; two of them where the suffix is 2."""
        at = self.directory
        copy = dircopy(at / f"src{suffix}", at / f"new{suffix}/%DATE%")
        date = "<datestr><format>then</format><replace>%DATE%</replace></datestr>"
        inside = {
            "10-mkdirs": directory(at / f"new{suffix}"),
            "20-ramdisk": directory(at / f"disk{suffix}", size="1M"),
            "30-preload": copy,
            "10-routing-table": "<route>blackhole 10.9.0.0/16</route><rule>from 10.9.0.1</rule>",
            "20-network-policy": "<nft>chain c { }</nft>",
            "10-archive": copy + date,
            "30-post-rm-rf": directory(at / f"gone{suffix}"),
        }[self.SCRIPT]
        given = f' id="10{suffix}" name="uplink{suffix}"' if "routing" in self.SCRIPT else ""
        return f"<{self.name}{given}>{inside}</{self.name}>"

    def value(self, suffix=""):
        """What stands in the line that says what is done for the element."""
        at = self.directory
        return {
            "10-mkdirs": at / f"new{suffix}",
            "20-ramdisk": at / f"disk{suffix}",
            "30-preload": at / f"new{suffix}",
            "10-routing-table": f"10{suffix}",
            "20-network-policy": uuid_of("web"),
            "10-archive": at / f"new{suffix}",
            "30-post-rm-rf": at / f"gone{suffix}",
        }[self.SCRIPT]

    def assert_finds(self, metadata, *suffixes):
        """In a dry run the script says what it would do for its elements with these suffixes."""
        xml = metadata if metadata.startswith("<domain") else in_metadata(metadata)
        result = self.call(xml, dry_run=True)
        self.assert_says(result, *map(self.value, suffixes or [""]))

    def assert_finds_nothing(self, xml):
        before = self.everything()
        self.assert_says(self.call(xml))
        self.assertEqual(self.everything(), before)


class Finding(Metadata):
    @of_each_script
    def test_the_element_is_found_in_hooks_of_the_namespace_with_any_prefix_or_none(self):
        self.assert_finds(hooks(self.element()))
        self.assert_finds(prefixed("hooks", self.element()))
        self.assert_finds(prefixed("p", self.element()))

    @of_each_script
    def test_the_element_is_found_bare_in_metadata(self):
        self.assert_finds(self.element())

    @of_each_script
    def test_several_elements_are_all_found(self):
        one, two = self.element(), self.element("2")
        for metadata in (
            hooks(one + two),
            hooks(one) + hooks(two),
            hooks(one) + two,
            prefixed("a", one) + prefixed("b", two),
        ):
            self.assert_finds(metadata, "", "2")

    @of_each_script
    def test_a_networks_element_is_found_in_hook_data(self):
        network = (
            f"<hookData><network><name>n</name><uuid>{uuid_of('web')}</uuid>"
            f"<metadata>{hooks(self.element())}</metadata></network></hookData>"
        )
        command = self.command()
        environment = {"PATH": os.environ["PATH"], "VIRT_HOOKS_DRY_RUN": "1"}
        self.assert_says(run(command, input=network, env=environment), self.value())

    @of_each_script
    def test_the_same_name_in_other_namespaces_is_left_alone(self):
        wrong = f"<{self.name} unknown='1'>text<unknown/></{self.name}>"
        other = wrong.replace(f"<{self.name} ", f"<{self.name} xmlns='urn:other' ")
        metadata = (
            f"<hooks xmlns='urn:other'>{wrong}</hooks>"
            f"<hooks xmlns='urn:virt-hooks:2'>{wrong}</hooks>"
            f"{other}{hooks(other)}<app xmlns='urn:other'>{wrong}{hooks(wrong)}</app>"
        )
        self.assert_finds_nothing(in_metadata(metadata))
        self.assert_finds(metadata + hooks(other + self.element()) + metadata)

    @of_each_script
    def test_a_space_in_the_namespace_of_somebody_else_is_no_hindrance(self):
        name = self.name
        others = "".join(
            f'<x:app xmlns:x="{namespace}" x:a="1"><x:{name}/></x:app>'
            f'<app xmlns="{namespace}"><{name}/></app>'
            for namespace in ("http://example.org/a b", "a ", f"{NAMESPACE} x", "a | } b")
        )
        self.assert_finds(others + hooks(self.element()) + others)
        self.assert_finds_nothing(in_metadata(others))

    @of_each_script
    def test_the_element_anywhere_else_is_left_alone(self):
        element = self.element()
        both = element + hooks(element)
        self.assert_finds_nothing(
            f"<domain type='{self.name}'><name>web</name>{both}"
            f"<description>{both.replace('<', '&lt;')}</description>"
            f"<devices><metadata>{both}</metadata></devices>"
            f"<metadata><!-- {both} -->{hooks(hooks(element))}</metadata></domain>"
        )

    @of_each_script
    def test_without_the_element_it_ends_at_once_without_an_xml_parser(self):
        trace = self.directory / "trace"
        strace = ["strace", "-f", "-o", trace, "-e", "trace=%file", "-s", "500"]
        environment = {**os.environ, "VIRT_HOOKS_DRY_RUN": "1"}
        for elements, parser in (("<other/>", False), (self.element(), True)):
            xml = guest_xml(elements)
            result = run([*strace, *self.command()], input=xml, env=environment)
            self.assert_says(result, *[self.value()] * parser)
            opened = re.findall(r'"([^"]*(?:pyexpat|/xml/)[^"]*)"', trace.read_text())
            self.assertEqual(bool(opened), parser, opened)

    @of_each_script
    def test_an_element_with_nothing_in_it_asks_for_nothing(self):
        given = ' id="101" name="uplink"' if "routing" in self.SCRIPT else ""
        if not given:  # of a routing table the name is there at least
            for text in ("", " \n ", "<!-- x -->"):
                self.assert_finds_nothing(guest_xml(f"<{self.name}>{text}</{self.name}>"))

    @of_each_script
    def test_white_space_around_a_text_and_between_elements_is_nothing(self):
        for space in ("\r\n\t ", "<!-- a -->\n "):
            spaced = re.sub(r">([^<]+)<", rf">{space}\1{space}<", self.element())
            self.assert_finds(hooks(re.sub(r">(?=<)", ">\n  \t", spaced)))

    @of_each_script
    def test_in_a_dry_run_nothing_is_done_and_otherwise_it_is(self):
        before = self.everything()
        self.assert_finds(hooks(self.element()))
        self.assertEqual(self.everything(), before)
        self.addCleanup(run, ["nft", "flush", "ruleset"])
        if "routing" in self.SCRIPT:
            self.addCleanup(self.call, self.element(), "stopped", "end", "-", name=self.SCRIPT)
        self.assert_says(self.call(guest_xml(self.element())), self.value())
        self.assertNotEqual(self.everything(), before)


class Refusing(Metadata):
    def assert_all_refused(self, elements, *values):
        """After a good element, by itself, and in a dry run, these are an error."""
        self.assert_refused(self.element("2") + elements, *values)
        before = self.everything()
        result = self.call(in_metadata(elements), dry_run=True)
        self.assert_error(result, *values)
        self.assertEqual((result.stdout, self.everything()), ("", before))

    @of_each_script
    def test_unknown_elements_and_attributes_are_errors_at_every_level(self):
        element = self.element()
        for tag in set(re.findall(r"<([a-z][-a-z]*)", element)):
            xml = element.replace(f"<{tag}", f"<{tag} unknown='odd'", 1)
            self.assert_all_refused(xml, "unknown")
            xml = element.replace(f"</{tag}>", f"<unknown/></{tag}>", 1)
            self.assert_all_refused(xml, "unknown")
        xml = element.replace(f"</{self.name}>", f"<Dir>/srv/x</Dir></{self.name}>")
        self.assert_all_refused(xml, "Dir")
        xml = element.replace(f"</{self.name}>", f"<dir xmlns='urn:o'>/srv/x</dir></{self.name}>")
        self.assert_all_refused(xml, "dir")

    @of_each_script
    def test_text_where_elements_belong_is_an_error(self):
        for tag in (self.name, "dircopy", "datestr"):
            if f"</{tag}>" in self.element():
                self.assert_all_refused(self.element().replace(f"</{tag}>", f"odd text</{tag}>", 1))

    @of_each_script
    def test_a_text_that_is_missing_or_there_twice_is_an_error(self):
        element = self.element()
        for tag, text in re.findall(r"<([a-z]+)[^<>]*>([^<]+)</", element):
            self.assert_all_refused(element.replace(f">{text}<", "> \n<", 1), tag)
            if tag in ("src", "dst", "format", "replace"):
                part = f"<{tag}>{text}</{tag}>"
                self.assert_all_refused(element.replace(part, ""), tag)
                self.assert_all_refused(element.replace(part, part * 2), tag)

    @of_each_script
    def test_xml_that_is_malformed_is_an_error_in_one_line(self):
        xml = in_metadata(hooks(self.element()))
        for bad in (xml[:-1], xml.replace("</hooks>", "</hook>"), f"{xml}x"):
            before = self.everything()
            result = self.call(bad)
            self.assertEqual((result.returncode, result.stdout), (1, ""))
            self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
            for part in (self.SCRIPT, "web"):
                self.assertIn(part, result.stderr)
            self.assertNotIn("Traceback", result.stderr)
            self.assertEqual(self.everything(), before)

    @of_each_script
    def test_an_error_names_the_guest_whatever_its_name_is(self):
        for guest in ("vm one", "--help", "é"):
            elements = self.element().replace(f"</{self.name}>", f"<unknown/></{self.name}>")
            self.assert_refused(elements, "unknown", guest=guest)


class Users(Metadata):
    """A user's own session of libvirt calls the hooks, too, as that user."""

    def setUp(self):
        super().setUp()
        for path in (self.directory, *self.directory.rglob("*")):
            os.chown(path, 1010, 1010)

    def call_as_user(self, elements):
        command = ["setpriv", "--reuid=1010", "--regid=1010", "--clear-groups", *self.command()]
        return run(command, input=guest_xml(elements))

    @of_each_script
    def test_without_the_element_all_is_well(self):
        self.assert_says(self.call_as_user("<other/>"))

    @of_each_script
    def test_with_the_element_an_error_says_that_only_root_may_and_nothing_is_done(self):
        before = self.everything()
        result = self.call_as_user(self.element())
        self.assert_error(result, "root", "1010")
        self.assertEqual((result.stdout, self.everything()), ("", before))


class Long(Metadata):
    def test_a_text_of_many_lines_is_read_at_once(self):
        self.SCRIPT = "20-network-policy"
        lines = "# a line of a long list\n" * 300_000  # adding them one by one took minutes
        elements = f"<network-policy><nft>{lines}chain c {{ }}</nft></network-policy>"
        self.assert_says(self.call(elements, dry_run=True), uuid_of("web"))


if __name__ == "__main__":
    unittest.main()
