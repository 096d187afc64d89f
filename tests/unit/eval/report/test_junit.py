"""JUnit XML of gates and scores: valid for every reporter, escaped, and never of an earlier report."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from lxml import etree

from eval.report.gates import Gate, check_gates
from eval.report.junit import write_junit, write_junit_of_error
from eval.results import Failure
from launch.cli import main
from tests.parts.fake_run import fake_results, write_fake_run

# What the schemas of Ant's JUnit task and of Jenkins' xUnit plugin both accept.
SCHEMA = """
<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema">
  <xs:simpleType name="moment"><xs:restriction base="xs:dateTime">
    <xs:pattern value="\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d"/></xs:restriction></xs:simpleType>
  <xs:simpleType name="word"><xs:restriction base="xs:token"><xs:minLength value="1"/></xs:restriction></xs:simpleType>
  <xs:complexType name="problem"><xs:simpleContent><xs:extension base="xs:string">
    <xs:attribute name="message" type="xs:string"/>
    <xs:attribute name="type" type="xs:string" use="required"/></xs:extension></xs:simpleContent></xs:complexType>
  <xs:element name="testsuites"><xs:complexType><xs:sequence>
    <xs:element name="testsuite" minOccurs="0" maxOccurs="unbounded"><xs:complexType><xs:sequence>
      <xs:element name="properties"><xs:complexType><xs:sequence>
        <xs:element name="property" minOccurs="0" maxOccurs="unbounded"><xs:complexType>
          <xs:attribute name="name" type="word" use="required"/>
          <xs:attribute name="value" type="xs:string" use="required"/></xs:complexType></xs:element>
      </xs:sequence></xs:complexType></xs:element>
      <xs:element name="testcase" minOccurs="0" maxOccurs="unbounded"><xs:complexType>
        <xs:choice minOccurs="0">
          <xs:element name="skipped"><xs:complexType>
            <xs:attribute name="message" type="xs:string"/></xs:complexType></xs:element>
          <xs:element name="error" type="problem"/>
          <xs:element name="failure" type="problem"/>
        </xs:choice>
        <xs:attribute name="name" type="xs:token" use="required"/>
        <xs:attribute name="classname" type="xs:token" use="required"/>
        <xs:attribute name="time" type="xs:decimal" use="required"/></xs:complexType></xs:element>
      <xs:element name="system-out" type="xs:string"/>
      <xs:element name="system-err" type="xs:string"/>
    </xs:sequence>
    <xs:attribute name="package" type="xs:token" use="required"/>
    <xs:attribute name="id" type="xs:int" use="required"/>
    <xs:attribute name="name" type="word" use="required"/>
    <xs:attribute name="timestamp" type="moment" use="required"/>
    <xs:attribute name="hostname" type="word" use="required"/>
    <xs:attribute name="tests" type="xs:int" use="required"/>
    <xs:attribute name="failures" type="xs:int" use="required"/>
    <xs:attribute name="errors" type="xs:int" use="required"/>
    <xs:attribute name="skipped" type="xs:int"/>
    <xs:attribute name="time" type="xs:decimal" use="required"/></xs:complexType></xs:element>
  </xs:sequence></xs:complexType></xs:element>
</xs:schema>"""


def valid(file: Path) -> ElementTree.Element:
    """Checks a file and its counts; returns its root."""
    etree.XMLSchema(etree.fromstring(SCHEMA)).assertValid(etree.parse(file))
    root = ElementTree.parse(file).getroot()
    for suite in root:
        paths = {"tests": "testcase", "failures": "*/failure", "errors": "*/error", "skipped": "*/skipped"}
        for attribute, path in paths.items():
            assert int(suite.attrib[attribute]) == len(suite.findall(path))
    return root


def kinds(root: ElementTree.Element) -> dict[str, str]:
    """What became of each case, by its name."""
    return {case.attrib["name"]: "".join(child.tag for child in case) for case in root.iter("testcase")}


def test_gates_and_scores(tmp_path: Path) -> None:
    failures = [Failure("translation/wmt", "no such file: pairs.jsonl")]
    gates = ["perplexity/heldout/bits_per_byte < 2.4", "benchmark/replica_copa/acc >= 0.9"]
    run = write_fake_run(tmp_path / "run", gates, failures=failures)
    write_junit(tmp_path / "junit.xml", run, check_gates(run))
    root = valid(tmp_path / "junit.xml")
    assert [suite.attrib["name"] for suite in root] == ["demo gates", "demo scores"]
    assert kinds(root) == {
        "perplexity/heldout/bits_per_byte < 2.4": "",
        "benchmark/replica_copa/acc >= 0.9": "failure",
        "perplexity/heldout": "",
        "compression/heldout": "",
        "benchmark/replica_copa": "",
        "benchmark/replica_piqa": "",
        "benchmark/replica_winogrande": "",
        "benchmark/replica_lambada": "",
        "translation/classical-zh": "",
        "translation/wmt": "error",
    }
    failed = root.find(".//failure")
    assert failed is not None and "0.57 against 0.9" in failed.attrib["message"]
    assert float(root[1].attrib["time"]) == fake_results().seconds


def test_the_first_run_leaves_gates_open_that_need_a_baseline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gates = ["benchmark/replica_copa/acc not worse than baseline", "benchmark/replica_copa/acc >= 0.1"]
    run, file = write_fake_run(tmp_path / "run", gates), tmp_path / "junit.xml"
    assert main(["report", str(run), "--gate", "--junit", str(file)]) == 1
    assert list(kinds(valid(file)).values())[:2] == ["failure", ""]
    assert main(["report", str(run), "--gate", "--junit", str(file), "--first"]) == 0
    assert list(kinds(valid(file)).values())[:2] == ["skipped", ""]
    assert "gate not decided: benchmark/replica_copa/acc not worse than baseline" in capsys.readouterr().out


@pytest.mark.parametrize(
    "reason",
    [
        "<b>\"&'</b>]]>",
        "\x1b[31mred\x00\x08\ufffe\ud800",
        "line 1\nline 2\ttab",
        "https://me:secret@host/x?token=T",
        "",
    ],
)
def test_any_text_is_written_and_read_again(tmp_path: Path, reason: str) -> None:
    run = write_fake_run(tmp_path / "run", [], failures=[Failure("samples/a<b>\n", reason)])
    write_junit(tmp_path / "junit.xml", run, [Gate("x < 1", False, None, None, reason)])
    root = valid(tmp_path / "junit.xml")
    assert kinds(root)["x < 1"] == "failure" and kinds(root)["samples/a<b>"] == "error"
    said = (tmp_path / "junit.xml").read_text(encoding="utf-8")
    assert "\x1b" not in said and "secret" not in said and "token=T" not in said


def test_the_command_writes_it_beside_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_fake_run(tmp_path / "run", ["benchmark/replica_copa/acc >= 0.9"])
    file = tmp_path / "new" / "junit.xml"
    assert main(["report", str(run), "--gate", "--junit", str(file)]) == 1
    assert list(kinds(valid(file)).values()).count("failure") == 1
    assert main(["report", str(run), "--junit", str(file)]) == 0
    assert "gate FAILED" in capsys.readouterr().out


def test_an_earlier_file_does_not_stay_when_there_is_no_report(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "run", ["benchmark/replica_copa/acc >= 0.1"])
    file = tmp_path / "junit.xml"
    assert main(["report", str(run), "--gate", "--junit", str(file)]) == 0
    (run / "results.json").unlink()
    assert main(["report", str(run), "--gate", "--junit", str(file)]) == 2
    root = valid(file)
    assert kinds(root) == {"report": "error"} and "results.json" in root[0].findall(".//error")[0].attrib["message"]
    assert main(["report", str(tmp_path / "nowhere"), "--junit", str(file)]) == 2
    assert "not a run directory" in file.read_text(encoding="utf-8")


def test_a_bug_has_a_name_too(tmp_path: Path) -> None:
    write_junit_of_error(tmp_path / "junit.xml", tmp_path, KeyError())
    assert "KeyError" in (tmp_path / "junit.xml").read_text(encoding="utf-8") and valid(tmp_path / "junit.xml")
