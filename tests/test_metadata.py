"""How the scripts read the guest's metadata, and what they say when they cannot.

Here stand five of them; all read it by the same text, as test_common.py sees to.
"""

import functools
import os
import random
import re
import shutil
import subprocess
import unittest
from concurrent.futures import ThreadPoolExecutor

from harness import NAMESPACE, SCRIPTS, TestCase, domain, mount_points, run, script, snapshot

# what each script is to do, in the directory D that Metadata.setUp makes; and its dry run's line
ELEMENTS = {
    "10-mkdirs": "<mkdirs><dir>D/new</dir></mkdirs>",
    "20-ramdisk": '<ramdisk><dir size="1M">D/disk</dir></ramdisk>',
    "30-preload": "<preload><dircopy><src>D/src</src><dst>D/dst</dst></dircopy></preload>",
    "10-archive": "<archive><dircopy><src>D/src</src><dst>D/kept/%DATE%</dst></dircopy>"
    "<datestr><format>then</format><replace>%DATE%</replace></datestr></archive>",
    "30-post-rm-rf": "<post-rm-rf><dir>D/gone</dir></post-rm-rf>",
}
WOULD = {
    "10-mkdirs": "would create D/new",
    "20-ramdisk": "would mount a ramdisk of 1M on D/disk",
    "30-preload": "would copy D/src into D/dst",
    "10-archive": "would archive D/src as D/kept/then",
    "30-post-rm-rf": "would remove D/gone",
}
TRACEBACK = re.compile("Traceback|Exception|Fatal Python error")


def in_metadata(metadata, guest="web"):
    return f"<domain type='lxc'><name>{guest}</name><metadata>{metadata}</metadata></domain>"


def hooks(content):
    return f'<hooks xmlns="{NAMESPACE}">{content}</hooks>'


def prefixed(prefix, content):
    """The content of <hooks> as "virsh metadata --set" stores it, with a prefix everywhere."""
    inner = re.sub(r"<(/?)([a-z])", rf"<\1{prefix}:\2", content)
    return f'<{prefix}:hooks xmlns:{prefix}="{NAMESPACE}">{inner}</{prefix}:hooks>'


def phase(name, guest="web"):
    if "prepare" in SCRIPTS[name]:
        return (guest, "prepare", "begin", "-")
    return (guest, "release", "end", "-")


def element_name(name):
    return name.partition("-")[2]


def of_each_script(test):
    """A test of each script, by its name."""

    @functools.wraps(test)
    def test_all(self):
        for name in ELEMENTS:
            with self.subTest(script=name):
                test(self, name)

    return test_all


class Metadata(TestCase):
    def setUp(self):
        super().setUp()
        self.write("src/file", "text")
        self.write("gone/file", "text")
        self.write("outside/file", "text")
        (self.directory / "disk").mkdir()

    def fill(self, text):
        return text.replace("D/", f"{self.directory}/")

    def element(self, name):
        return self.fill(ELEMENTS[name])

    def run_raw(self, name, xml, *arguments, dry_run="1", path=None, **options):
        """Run a script on these bytes, in a dry run unless told otherwise; captured as bytes."""
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "VIRT_HOOKS_DRY_RUN": dry_run}
        if isinstance(xml, str):
            xml = xml.encode()
        command = [path or script(name), *(arguments or phase(name))]
        options = {"env": environment, "input": xml, "timeout": 60, **options}
        return subprocess.run(command, capture_output=True, **options)

    def assert_does(self, name, xml, times=1, **options):
        """The script finds its element this many times."""
        result = self.run_raw(name, xml, **options)
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        self.assertEqual(result.stdout.decode(), self.fill(f"{WOULD[name]}\n") * times)

    def assert_does_nothing(self, name, xml, *arguments, **options):
        before, points = snapshot(self.directory), mount_points()
        result = self.run_raw(name, xml, *arguments, dry_run="", **options)
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, b"", b""))
        self.assertEqual((snapshot(self.directory), mount_points()), (before, points))

    def assert_refuses(self, name, xml, *parts, arguments=(), guest="web", **options):
        """A one-line error, returned, has script, guest and these parts; nothing changes."""
        before, points = snapshot(self.directory), mount_points()
        result = self.run_raw(name, xml, *arguments, **{"dry_run": "", **options})
        stderr = result.stderr.decode()
        self.assertEqual((result.returncode, result.stdout), (1, b""), stderr)
        self.assertEqual(stderr.count("\n"), 1, stderr)
        self.assertNotRegex(stderr, TRACEBACK)
        for part in (f"{name}: {guest}: ", *parts):
            self.assertIn(part, stderr)
        self.assertEqual((snapshot(self.directory), mount_points()), (before, points))
        return stderr


class Finding(Metadata):
    @of_each_script
    def test_the_element_is_found_in_hooks_of_the_namespace_with_any_prefix(self, name):
        element = self.element(name)
        self.assert_does(name, in_metadata(hooks(element)))
        for prefix in ("hooks", "p", "h1", "virt-hooks", "_", "é"):
            self.assert_does(name, in_metadata(prefixed(prefix, element)))
        apart = re.sub(r"<(/?)([a-z])", r"<\1q:\2", element)
        bound = re.sub(r"<q:[-a-z]+", rf'\g<0> xmlns:q="{NAMESPACE}"', apart, count=1)
        self.assert_does(name, in_metadata(hooks(bound)))

    @of_each_script
    def test_the_element_is_found_bare_in_metadata(self, name):
        self.assert_does(name, in_metadata(self.element(name)))
        beside = '<o:app xmlns:o="urn:other"><o:mkdirs/></o:app>'
        self.assert_does(name, in_metadata(beside + self.element(name) + beside))

    @of_each_script
    def test_several_elements_are_all_found(self, name):
        if name == "20-ramdisk":  # the same ramdisk twice is an error
            return
        element = self.element(name)
        for metadata, times in (
            (hooks(element * 3), 3),
            (hooks(element) * 2, 2),
            (element * 2, 2),
            (hooks(element) + element, 2),
            (prefixed("a", element) + prefixed("b", element) + hooks(element), 3),
        ):
            self.assert_does(name, in_metadata(metadata), times)

    @of_each_script
    def test_a_networks_element_is_one_level_deeper(self, name):
        for metadata in (hooks(self.element(name)), self.element(name)):
            network = f"<network><name>n</name><metadata>{metadata}</metadata></network>"
            self.assert_does(name, f"<hookData>{network}</hookData>")
            self.assert_does(name, f"<hookData><x/>{network}</hookData>")
            self.assert_does(name, network)

    @of_each_script
    def test_the_root_may_have_any_name_and_a_declaration_before_it(self, name):
        xml = in_metadata(hooks(self.element(name)))
        self.assert_does(name, f"<?xml version='1.0' encoding='UTF-8'?>\n{xml}\n")
        self.assert_does(name, f"\ufeff{xml}")
        self.assert_does(name, f"<!-- mkdirs --><?pi mkdirs?>{xml}<!-- mkdirs -->")

    @of_each_script
    def test_the_same_name_in_other_namespaces_is_left_alone(self, name):
        element, own = self.element(name), element_name(name)
        wrong = f"<{own} unknown='1'>text<unknown/></{own}>"  # it is not even looked into
        other = wrong.replace(f"<{own} ", f"<{own} xmlns='urn:other' ")
        for metadata in (
            f"<hooks xmlns='urn:other'>{wrong}</hooks>",
            f"<h:hooks xmlns:h='urn:other'>{wrong.replace(own, f'h:{own}')}</h:hooks>",
            f"<hooks xmlns='urn:virt-hooks:2'>{wrong}</hooks>",
            f"<hooks xmlns='urn:virt-hooks:10'>{wrong}</hooks>",
            f"<hooks xmlns='URN:VIRT-HOOKS:1'>{wrong}</hooks>",
            f"<hooks xmlns='{NAMESPACE}/'>{wrong}</hooks>",
            f"<Hooks xmlns='{NAMESPACE}'>{wrong}</Hooks>",
            f"<hook xmlns='{NAMESPACE}'>{wrong}</hook>",
            other,
            hooks(other),
            f"<app xmlns='urn:other'>{wrong}{hooks(wrong)}</app>",
            f"<app xmlns='urn:other'>{element}{hooks(element)}</app>",
        ):
            self.assert_does_nothing(name, in_metadata(metadata))
        self.assert_does(name, in_metadata(other + hooks(other + element) + other))

    @of_each_script
    def test_the_element_anywhere_else_is_left_alone(self, name):
        element = self.element(name)
        both = element + hooks(element)
        for xml in (
            f"<domain><name>web</name>{both}</domain>",
            f"<domain><description>{both.replace('<', '&lt;')}</description></domain>",
            f"<domain><description><![CDATA[{both}]]></description></domain>",
            f"<domain><description>{both}</description></domain>",
            f"<domain><name>{both}</name></domain>",
            f"<domain><devices>{both}</devices></domain>",
            f"<domain><devices><metadata>{both}</metadata></devices></domain>",
            f"<domain><metadata><metadata>{both}</metadata></metadata></domain>",
            f"<domain><metadata><domain>{both}</domain></metadata></domain>",
            f"<domain><metadata><!-- {both} --></metadata></domain>",
            f"<domain><metadata><![CDATA[{both}]]></metadata></domain>",
            f"<domain><metadata/>{both}<metadata/></domain>",
            f"<domain><Metadata>{both}</Metadata></domain>",
            f"<domain><m:metadata xmlns:m='urn:m'>{both}</m:metadata></domain>",
            f"<metadata>{both}</metadata>",
            f"<hookData><metadata>{both}</metadata></hookData>",
            f"<hookData><a><b><metadata>{both}</metadata></b></a></hookData>",
            element,
            hooks(element),
            in_metadata(hooks(hooks(element))),
            in_metadata(hooks(f"<x>{element}</x>")),
            f"<domain type='{element_name(name)}'/>",
        ):
            self.assert_does_nothing(name, xml)

    @of_each_script
    def test_without_the_element_it_ends_at_once_without_an_xml_parser(self, name):
        trace = self.directory / "trace"
        strace = ["strace", "-f", "-o", trace, "-e", "trace=%file", "-s", "500"]
        others = {name: self.element(name) for name in ELEMENTS}
        rest = "".join(element for other, element in others.items() if other != name)
        for xml, parser in ((domain(rest), False), (domain(others[name]), True)):
            result = run([*strace, script(name), *phase(name)], input=xml,
                         env={**os.environ, "VIRT_HOOKS_DRY_RUN": "1"})  # fmt: skip
            self.assert_succeeds(result)
            opened = re.findall(r'"([^"]*(?:pyexpat|/xml)[^"]*)"', trace.read_text())
            self.assertEqual(bool(opened), parser, opened)
            self.assertEqual(bool(result.stdout), parser)

    @of_each_script
    def test_what_holds_no_element_is_no_error_whatever_it_is(self, name):
        for xml in (
            b"",
            b"\n",
            b"<domain/>",
            b"<domain",
            b"no XML",
            b"\xff\xfe\0",
            bytes(10000),
        ):
            self.assert_does_nothing(name, xml)

    @of_each_script
    def test_all_of_the_input_is_read(self, name):
        padding = f"<description>{'x' * 3_000_000}</description>"
        xml = in_metadata(hooks(self.element(name)))
        self.assert_does(name, xml.replace("<metadata>", f"{padding}<metadata>"))
        self.assert_does_nothing(name, f"<domain>{padding}</domain>")


class Texts(Metadata):
    @of_each_script
    def test_white_space_around_a_text_is_no_part_of_it(self, name):
        for space in (" ", "\n\t  ", "\r\n", "&#32;", "&#10;&#9;", "&#13;", "<!-- a -->\n "):
            spaced = re.sub(r">([^<]+)<", rf">{space}\1{space}<", self.element(name))
            self.assert_does(name, in_metadata(hooks(spaced)))

    @of_each_script
    def test_white_space_between_elements_is_nothing(self, name):
        spaced = re.sub(r">(?=<)", ">\n  \t", self.element(name))
        self.assert_does(name, in_metadata(hooks(spaced)))

    def test_other_spaces_are_part_of_a_name(self):
        for space in "\u00a0\u0085\u2003\u2028\u3000\ufeff":
            with self.subTest(space=space):
                element = f"<mkdirs><dir>{self.directory}/a{space}</dir></mkdirs>"
                result = self.run_raw("10-mkdirs", domain(element), dry_run="")
                self.assertEqual((result.returncode, result.stderr), (0, b""))
                self.assertIn(f"a{space}", os.listdir(self.directory))

    @of_each_script
    def test_comments_cdata_instructions_and_references_in_texts(self, name):
        for part in ("<!-- c -->", "<![CDATA[]]>", "<?pi x?>", "<!-- <dir>/srv</dir> -->"):
            element = re.sub(r">([^<]+)([^<])<", rf">{part}\1{part}\2{part}<", self.element(name))
            self.assert_does(name, in_metadata(hooks(element)))
        wrapped = re.sub(r">([^<]+)<", r"><![CDATA[\1]]><", self.element(name))
        self.assert_does(name, in_metadata(hooks(wrapped)))
        references = self.element(name).replace("/srv", "&#x2f;&#115;rv")
        self.assert_does(name, in_metadata(hooks(references)))

    def test_predefined_entities_and_non_ascii_characters_are_themselves(self):
        path = self.directory / "a&b<c>'\"é日\U0001f4be"
        escaped = str(path).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        element = f"<mkdirs><dir>{escaped}</dir></mkdirs>"
        result = self.run_raw("10-mkdirs", domain(element), dry_run="")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stdout.decode(), f"created {path}\n")
        self.assertTrue(path.is_dir())

    def test_an_encoding_that_is_declared_is_used(self):
        element = f"<mkdirs><dir>{self.directory}/é</dir></mkdirs>"
        xml = f"<?xml version='1.0' encoding='ISO-8859-1'?>{domain(element)}".encode("latin-1")
        result = self.run_raw("10-mkdirs", xml, dry_run="")
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        self.assertIn("é", os.listdir(self.directory))

    @of_each_script
    def test_text_where_elements_belong_is_an_error(self, name):
        element, own = self.element(name), element_name(name)
        for text in ("text", "/srv/x", "&amp;", "\u00a0", "<![CDATA[x]]>"):
            for xml in (
                element.replace(f"<{own}>", f"<{own}>{text}"),
                element.replace(f"</{own}>", f"{text}</{own}>"),
                element.replace("<dircopy>", f"<dircopy>{text}"),
                element.replace("</dircopy>", f"{text}</dircopy>"),
                element.replace("<datestr>", f"<datestr>{text}"),
            ):
                if xml != element:
                    self.assert_refuses(name, in_metadata(hooks(xml)), own, "text")

    @of_each_script
    def test_the_element_as_it_was_asked_for_with_text_alone_is_an_error(self, name):
        own = element_name(name)
        xml = in_metadata(hooks(f"<{own}>/srv/x</{own}>"))
        self.assert_refuses(name, xml, f"{own} '/srv/x': text")

    @of_each_script
    def test_an_empty_element_asks_for_nothing(self, name):
        own = element_name(name)
        for empty in (f"<{own}/>", f"<{own}> \n </{own}>", f"<{own}><!-- x --></{own}>"):
            self.assert_does_nothing(name, in_metadata(hooks(empty)))


class Refusing(Metadata):
    @of_each_script
    def test_unknown_elements_and_attributes_are_errors_at_every_level(self, name):
        element, own = self.element(name), element_name(name)
        attributes = (
            ("unknown='1'", "unknown='1'"),
            ("unknown='&#10;&#13;'", "unknown='\\n\\r'"),
            ("xml:lang='en'", "lang='en'"),
            (f"xmlns:h='{NAMESPACE}' h:mode='1'", "mode='1'"),
            ("xmlns:h='urn:other' h:size='1'", "size='1'"),
            ("é='é'", "é='é'"),
            (f"unknown='{'x' * 5000}'", "unknown='xxx"),
        )
        children = (
            ("<unknown/>", "unknown"),
            ("<dirr>/srv/x</dirr>", "dirr"),
            ("<Src>/srv/x</Src>", "Src"),
            ("<o:dir xmlns:o='urn:other'>/srv/x</o:dir>", "dir"),
            (f"<{own}/>", own),
            (hooks(element), "hooks"),
        )
        for tag in re.findall(r"<([a-z][-a-z]*)", element):
            most = None if tag == own else 2
            for attribute, shown in attributes[:most]:
                xml = in_metadata(hooks(element.replace(f"<{tag}", f"<{tag} {attribute}", 1)))
                self.assert_refuses(name, xml, own, tag, "unknown attribute", shown)
            for child, shown in children[:most]:
                xml = in_metadata(hooks(element.replace(f"</{tag}>", f"{child}</{tag}>", 1)))
                self.assert_refuses(name, xml, own, tag, "unknown element", shown)

    @of_each_script
    def test_a_namespace_with_a_newline_makes_no_second_line(self, name):
        element, own = self.element(name), element_name(name)
        for xml in (
            element.replace(f"<{own}>", f"<{own} xmlns:h='urn:a&#10;b' h:mode='1'>"),
            element.replace(f"</{own}>", f"<dir xmlns='urn:a&#10;b'/></{own}>"),
        ):
            self.assert_refuses(name, in_metadata(hooks(xml)), "unknown")

    @of_each_script
    def test_texts_that_are_missing_are_errors(self, name):
        element = self.element(name)
        for tag, text in re.findall(r"<([a-z]+)[^<>]*>([^<]+)</", element):
            for nothing in ("", " \n", "<!-- x -->"):
                xml = element.replace(f">{text}<", f">{nothing}<")
                self.assert_refuses(name, in_metadata(hooks(xml)), f"/{tag}: empty")
            unsaid = element.replace(f"<{tag}>{text}</{tag}>", "")
            if unsaid != element and tag != "dir":
                self.assert_refuses(name, in_metadata(hooks(unsaid)), f"<{tag}> is missing")

    @of_each_script
    def test_a_part_that_is_there_twice_is_an_error(self, name):
        element = self.element(name)
        for tag, text in re.findall(r"<(src|dst|format|replace)>([^<]+)</", element):
            part = f"<{tag}>{text}</{tag}>"
            xml = element.replace(part, part * 2)
            self.assert_refuses(name, in_metadata(hooks(xml)), f"/{tag} '{text}'", "second")

    @of_each_script
    def test_a_bad_second_element_leaves_the_first_undone(self, name):
        good = self.element(name)
        bad = good.replace("</", "<unknown/></", 1)
        for metadata in (hooks(good + bad), hooks(good) + hooks(bad), hooks(good) + bad):
            self.assert_refuses(name, in_metadata(metadata), "unknown element <unknown>")

    @of_each_script
    def test_xml_that_is_malformed_is_an_error(self, name):
        element = self.element(name)
        xml = in_metadata(hooks(element))
        for bad in (
            xml[:-1], xml[:-20], xml[: xml.index("</hooks>")], xml[1:], f"{xml}{xml}", f"{xml}x",
            f"x{xml}", f" <?xml version='1.0'?>{xml}", xml.replace("</hooks>", "</hook>"),
            xml.replace("<hooks ", "<o:hooks "), xml.replace("<hooks ", "<hooks a='1' a='2' "),
            xml.replace("/src", "/s&rc;").replace("/disk", "/d&isk;").replace("/new", "/n&ew;")
            .replace("/gone", "/g&one;"),
            xml.replace(">/srv", ">&#0;/srv", 1), xml.replace(">/srv", ">&#x1f;/srv", 1),
            xml.replace(">/srv", ">\x01/srv", 1), xml.replace(">/srv", "><!-- -- -->/srv", 1),
            xml.replace(">/srv", ">&#xD800;/srv", 1), element_name(name), f"<!--{xml}",
            xml.replace(">/srv", ">&/srv", 1), xml.replace(">/srv", "></srv", 1),
        ):  # fmt: skip
            self.assert_refuses(name, bad, "the XML on stdin")
        for byte in (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\0", b"\xf8\x88\x80\x80\x80"):
            bad = xml.encode().replace(b">/srv", b">" + byte + b"/srv", 1)
            self.assert_refuses(name, bad, "the XML on stdin")

    @of_each_script
    def test_an_encoding_that_is_unknown_is_an_error(self, name):
        xml = in_metadata(hooks(self.element(name)))
        for encoding in (
            "klingon",
            "big5",
            "idna",
            "hex",
            "rot13",
            "UTF-16",
            "x" * 500,
        ):
            bad = f"<?xml version='1.0' encoding='{encoding}'?>{xml}"
            self.assert_refuses(name, bad, "the XML on stdin")

    @of_each_script
    def test_a_document_type_is_an_error_and_its_entities_are_never_read(self, name):
        secret = self.write("secret", "SECRET")
        laughs = "<!ENTITY a0 'ha'>" + "".join(
            f"<!ENTITY a{n + 1} '{f'&a{n};' * 10}'>" for n in range(12)
        )
        element = self.element(name)
        inside = re.sub(r">/srv", ">&a12;/srv", element, count=1)
        for declaration, content in (
            ("<!DOCTYPE domain>", element),
            ("<!DOCTYPE domain SYSTEM 'domain.dtd'>", element),
            (f"<!DOCTYPE domain SYSTEM 'file://{secret}'>", element),
            ("<!DOCTYPE domain PUBLIC '-//x//y' 'http://localhost/x'>", element),
            ("<!DOCTYPE domain []>", element),
            ("<!DOCTYPE domain [<!ELEMENT domain ANY>]>", element),
            (f"<!DOCTYPE domain [<!ENTITY a12 '{secret}'>]>", inside),
            (f"<!DOCTYPE domain [<!ENTITY a12 SYSTEM 'file://{secret}'>]>", inside),
            (f"<!DOCTYPE domain [<!ENTITY % p SYSTEM 'file://{secret}'>%p;]>", element),
            (f"<!DOCTYPE domain [{laughs}]>", inside),
            ("<!DOCTYPE domain [<!ATTLIST dir mode CDATA '7777'>]>", element),
        ):
            xml = declaration + in_metadata(hooks(content))
            self.assertNotIn("SECRET", self.assert_refuses(name, xml, "document type"))

    @of_each_script
    def test_errors_are_errors_in_a_dry_run_too(self, name):
        element, own = self.element(name), element_name(name)
        for bad in (
            f"<{own}>text</{own}>",
            element.replace("</", "<unknown/></", 1),
            element.replace(f"<{own}>", f"<{own} unknown='1'>"),
            element.replace(f"{self.directory}/", "relative/"),
            element.replace(f"{self.directory}/", f"{self.directory}/../"),
            element.replace(f"{self.directory}/", ""),
            element.replace(f"</{own}>", ""),
        ):
            self.assert_refuses(name, in_metadata(hooks(bad)), dry_run="1")


class GuestNames(Metadata):
    @of_each_script
    def test_messages_have_the_name_from_the_arguments(self, name):
        odd = (
            "web",
            "vm one",
            "-dash",
            "--help",
            ".",
            "..",
            "x;y",
            "é",
            "$(id)",
            "%s",
            "'",
            "-",
            "*",
        )
        own = element_name(name)
        xml = in_metadata(hooks(f"<{own}><unknown/></{own}>"), guest="another")
        for guest in odd:
            if guest != "-":
                self.assert_refuses(name, xml, arguments=phase(name, guest), guest=guest)
        self.assert_refuses(name, xml, arguments=("web",), guest="web")

    @of_each_script
    def test_messages_have_the_name_from_the_xml_where_there_are_no_arguments(self, name):
        own = element_name(name)
        wrong = hooks(f"<{own}><unknown/></{own}>")
        # without its operation a script takes its own phase's
        for guest in ("web", "vm one", "é", " spaced ", "x<!-- c -->y"):
            result = run([script(name)], input=in_metadata(wrong, guest))
            shown = guest.strip().replace("<!-- c -->", "")
            self.assert_one_line_error(result, f"{name}: {shown}: {own}: unknown element")
        xml = f"<network><name>net</name><metadata>{wrong}</metadata></network>"
        for whole in (xml, f"<hookData>{xml}</hookData>"):
            result = run([script(name)], input=whole)
            self.assert_one_line_error(result, f"{name}: net: {own}: unknown element")

    @of_each_script
    def test_a_name_with_a_newline_makes_no_second_line(self, name):
        own = element_name(name)
        xml = in_metadata(hooks(f"<{own}><unknown/></{own}>"), guest="a\nb")
        for command in ([script(name)], [script(name), "a\nb", *phase(name)[1:]]):
            self.assert_one_line_error(run(command, input=xml), f"{name}: ", "unknown element")

    @of_each_script
    def test_a_name_that_is_no_utf_8_is_no_traceback(self, name):
        own = element_name(name)
        bad = f"<{own}><unknown/></{own}>"
        for locale in ("C", "C.UTF-8"):
            environment = {
                "LC_ALL": locale,
                "VIRT_HOOKS_DRY_RUN": "1",
                "PATH": os.environ["PATH"],
            }
            for reason in ("-", "saved"):
                for element, status in ((bad, 1), (self.element(name), 0)):
                    arguments = (b"\xff\xe9", *phase(name)[1:3], reason)
                    result = self.run_raw(name, domain(element), *arguments, env=environment)
                    self.assertEqual(result.returncode, status, result.stderr)
                    self.assertNotRegex(result.stderr.decode(errors="replace"), TRACEBACK)


class Running(Metadata):
    DONE = {
        "10-mkdirs": lambda d: (d / "new").is_dir(),
        "20-ramdisk": lambda d: str(d / "disk") in mount_points(),
        "30-preload": lambda d: (d / "dst/file").read_text() == "text",
        "10-archive": lambda d: (d / "kept/then/file").read_text() == "text",
        "30-post-rm-rf": lambda d: not (d / "gone").exists(),
    }

    def assert_done(self, name, result):
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        self.assertEqual(result.stdout.count(b"\n"), 1)
        self.assertNotIn(b"would", result.stdout)
        self.assertTrue(self.DONE[name](self.directory))

    @of_each_script
    def test_a_dry_run_prints_a_line_an_action_and_changes_nothing(self, name):
        # with no directory's time changed, so nothing was made and removed again either
        before, points = snapshot(self.directory), mount_points()
        when = [path.stat().st_ctime_ns for path in sorted(self.directory.rglob("*"))]
        for value in ("1", "yes", "2"):
            self.assert_does(name, domain(self.element(name)), dry_run=value)
        self.assertEqual((snapshot(self.directory), mount_points()), (before, points))
        after = [path.stat().st_ctime_ns for path in sorted(self.directory.rglob("*"))]
        self.assertEqual(after, when)

    @of_each_script
    def test_with_the_variable_empty_it_runs_for_real(self, name):
        result = self.run_raw(name, domain(self.element(name)), dry_run="")
        self.assert_done(name, result)

    @of_each_script
    def test_with_the_variable_0_it_runs_for_real(self, name):
        result = self.run_raw(name, domain(self.element(name)), dry_run="0")
        self.assert_done(name, result)

    @of_each_script
    def test_each_script_works_alone_wherever_it_is_copied_whatever_its_name(self, name):
        (self.directory / "alone").mkdir(exist_ok=True)
        copy = self.directory / "alone" / f"{name} copy"
        shutil.copy(script(name), copy)
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        result = self.run_raw(name, domain(self.element(name)), path=copy, env=environment, cwd="/")
        self.assert_done(name, result)
        wrong = domain(f"<{element_name(name)}><unknown/></{element_name(name)}>")
        result = self.run_raw(name, wrong, path=copy)
        self.assertTrue(result.stderr.startswith(f"{name} copy: web: ".encode()), result.stderr)
        copy.unlink()
        self.assertEqual(os.listdir(self.directory / "alone"), [])

    @of_each_script
    def test_modules_of_the_callers_directory_and_environment_are_not_taken(self, name):
        for module in ("os", "grp", "pwd", "xml", "errno", "time", "sitecustomize", "signal"):
            self.write(f"modules/{module}.py", "raise SystemExit('taken')\n")
        modules = self.directory / "modules"
        shutil.copy(script(name), modules)
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(modules),
                       "PYTHONSTARTUP": str(modules / "os.py"), "VIRT_HOOKS_DRY_RUN": "1",
                       "PYTHONHOME": "/nonexistent"}  # fmt: skip
        self.assert_does(
            name, domain(self.element(name)), path=modules / name, env=environment, cwd=modules
        )

    @of_each_script
    def test_with_a_terminal_on_stdin_it_prints_how_to_use_it(self, name):
        for arguments in ((), phase(name)):
            leader, terminal = os.openpty()
            result = subprocess.run([script(name), *arguments], stdin=terminal,
                                    capture_output=True, text=True, timeout=60)  # fmt: skip
            os.close(terminal)
            os.close(leader)
            self.assertNotEqual(result.returncode, 0)
            self.assertEqual(result.stdout, "")
            self.assertIn(f"virsh dumpxml web | {name} web", result.stderr)
            self.assertIn(f"<{element_name(name)}>", result.stderr)

    @of_each_script
    def test_with_stdin_closed_it_fails_and_does_nothing(self, name):
        before, points = snapshot(self.directory), mount_points()
        result = subprocess.run(
            ["/bin/sh", "-c", '"$@" <&-', "sh", script(name), *phase(name)],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        self.assertNotEqual(result.returncode, 0)
        self.assertNotRegex(result.stderr, TRACEBACK)
        self.assertNotEqual(result.stderr, "")
        self.assertEqual((snapshot(self.directory), mount_points()), (before, points))

    @of_each_script
    def test_where_its_output_cannot_go_it_says_so_in_one_line_at_most(self, name):
        for target in ("/dev/full", "a pipe without a reader"):
            if target == "/dev/full":
                end = os.open(target, os.O_WRONLY)
            else:
                reader, end = os.pipe()
                os.close(reader)
            result = subprocess.run(
                [script(name), *phase(name)], stdout=end, stderr=subprocess.PIPE, text=True,
                input=domain(self.element(name)), env={**os.environ, "VIRT_HOOKS_DRY_RUN": "1"},
            )  # fmt: skip
            os.close(end)
            self.assertIn(result.returncode, (0, 1), result.stderr)
            self.assertLessEqual(result.stderr.count("\n"), 1, result.stderr)
            self.assertNotRegex(result.stderr, TRACEBACK)

    @of_each_script
    def test_in_a_locale_that_is_not_utf_8_no_name_is_mistaken(self, name):
        # what a host's own locale may be: the interpreter's UTF-8 mode, on for LC_ALL=C, is off
        element = self.element(name).replace(f"{self.directory}/", f"{self.directory}/é")
        command = ["/usr/bin/python3", "-IS", "-X", "utf8=0", script(name), *phase(name)]
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
        before, points = snapshot(self.directory), mount_points()
        result = run(command, input=domain(element), env=environment)
        self.assert_one_line_error(result, f"{name}: ", "UTF-8", "LC_ALL=C")
        self.assertEqual((snapshot(self.directory), mount_points()), (before, points))
        result = run(command, input=domain(""), env=environment)
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "", ""))

    @of_each_script
    def test_it_does_not_matter_how_many_descriptors_are_open_or_closed(self, name):
        result = subprocess.run(
            ["/bin/sh", "-c", 'exec 3</ 4</ 5</ 9</; "$@"', "sh", script(name), *phase(name)],
            input=domain(self.element(name)), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertTrue(self.DONE[name](self.directory))


class Fuzz(Metadata):
    """Metadata with random mutations, in dry runs, always the same from the same seed."""

    BLOCKS = 80  # for each script
    SNIPPETS = (
        "<dir>", "</dir>", "<dir/>", "<dircopy>", "</dircopy>", "<src/>", "<dst>/</dst>", "<",
        ">", "&", "</", "/>", "<!--", "-->", "<![CDATA[", "]]>", "<?x?>", "&#0;", "&#10;",
        "&amp;", "&lt;", "..", "/..", "//", "/", "./", "\0", "\n", "\r", " ", "\t", "é", "\u202e",
        "\U0010ffff", "%", "%DATE%", "%Y", "%!", "%s%n", "size='0'", " size='1M'", " mode='9'",
        " mode='7777'", " owner='root'", " owner='-1'", " optional='yes'", " optional='x'",
        " xmlns=''", " xmlns='urn:other'", " xmlns:o='urn:a&#10;b' o:a='1'",
        "<o:dir xmlns:o='urn:virt-hooks:1'>/srv</o:dir>", "'", '"', "outside", "link", "file",
        "x" * 300, "/x" * 3000, "-", "$(id)", "<datestr>", "</datestr>", "<!DOCTYPE a>",
        "<?xml version='1.0' encoding='big5'?>", "<hooks>", "</hooks>", "\\", "*",
    )  # fmt: skip

    def mutated(self, chance, text):
        for _ in range(chance.choice((1, 1, 2, 3, 5))):
            start, length = chance.randrange(len(text) + 1), chance.choice((0, 0, 1, 1, 5, 30))
            kind = chance.randrange(4)
            if kind == 0:  # put in, or replace
                text = text[:start] + chance.choice(self.SNIPPETS) + text[start + length :]
            elif kind == 1:  # take out, or repeat
                length += 1
                times = chance.choice((0, 2))
                text = text[:start] + text[start : start + length] * times + text[start + length :]
            elif kind == 2:  # in a place where it still parses: a text
                texts = [match.span(1) for match in re.finditer(r">([^<>]+)<", text)]
                if texts:
                    start, end = chance.choice(texts)
                    start = chance.randint(start, end)
                    text = text[:start] + chance.choice(self.SNIPPETS) + text[end:]
            else:  # an element twice, or gone, or elsewhere
                parts = [
                    match.span() for match in re.finditer(r"<([a-z-]+)[^<>]*>[^<>]*</\1>", text)
                ]
                if parts:
                    start, end = chance.choice(parts)
                    part = text[start:end]
                    text = text[:start] + part * chance.choice((0, 2)) + text[end:]
                    if chance.random() < 0.3:
                        at = chance.randrange(len(text) + 1)
                        text = text[:at] + part + text[at:]
        return text

    def test_no_input_is_a_traceback_or_a_change(self):
        (self.directory / "link").symlink_to("outside")
        before, points, root = snapshot(self.directory), mount_points(), os.listdir("/")

        def judge(number):
            name = list(ELEMENTS)[number % len(ELEMENTS)]
            chance = random.Random(f"{name} {number}")
            elements = self.element(name) * chance.choice((1, 1, 2))
            if chance.random() < 0.8:
                xml = in_metadata(hooks(self.mutated(chance, elements)))
            else:
                xml = self.mutated(chance, in_metadata(hooks(elements)))
            data = xml.encode("utf-8", "surrogatepass")
            if chance.random() < 0.1:
                at = chance.randrange(len(data))
                data = data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
            arguments = phase(name)
            if name == "20-ramdisk" and chance.random() < 0.5:
                arguments = ("web", "release", "end", "-")
            first = self.run_raw(name, data, *arguments)
            wrong = None
            stderr = first.stderr.decode(errors="replace")
            if first.returncode not in (0, 1):
                wrong = f"exit status {first.returncode}"
            elif TRACEBACK.search(stderr):
                wrong = "a traceback"
            elif first.returncode == 1 and stderr.count("\n") != 1:
                wrong = "not one line"
            elif first.returncode == 1 and not stderr.startswith(f"{name}: web: "):
                wrong = "without script and guest"
            elif first.returncode == 1 and first.stdout:
                wrong = "something done before the error"
            elif first.returncode == 0 and stderr and "warning: kept the tmpfs" not in stderr:
                wrong = "a message without an error"
            elif number % 4 == 0:
                second = self.run_raw(name, data, *arguments)
                answers = [(r.returncode, r.stdout, r.stderr) for r in (first, second)]
                if answers[0] != answers[1]:
                    wrong = f"another answer the second time: {answers[1]}"
            return first.returncode, wrong and (wrong, name, number, stderr, data)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            judged = list(pool.map(judge, range(self.BLOCKS * len(ELEMENTS))))
        self.assertEqual([wrong for _status, wrong in judged if wrong][:5], [])
        self.assertEqual(snapshot(self.directory), before)
        self.assertEqual((mount_points(), os.listdir("/")), (points, root))
        statuses = [status for status, _wrong in judged]
        for status in (0, 1):  # else the mutations would be too few or too many
            self.assertGreater(statuses.count(status), len(statuses) // 20)


if __name__ == "__main__":
    unittest.main()
