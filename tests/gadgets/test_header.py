"""The XML header."""

from __future__ import annotations

import ismrmrd
import pytest

from gadgets.header import parse
from gadgets.scanfile import read_scan
from recon_core.errors import DataError


def test_reads_what_the_header_says(scans):
    header = parse(
        scans.Protocol(
            encoded_matrix=(64, 48, 1),
            encoded_fov=(600.0, 450.0, 8.0),
            matrix=(32, 24, 1),
            fov=(300.0, 225.0, 8.0),
            trajectory="spiral",
            limits="<kspace_encoding_step_1><minimum>1</minimum><maximum>47</maximum><center>24</center></kspace_encoding_step_1>",
            sequence="<TR>3.5</TR><TE>1.5</TE><TE>2.5</TE><TI>100</TI>",
        ).xml()
    )
    encoding = header.encoding(0)
    assert encoding.encoded.matrix == (64, 48, 1)
    assert encoding.encoded.field_of_view == (600.0, 450.0, 8.0)
    assert encoding.recon.matrix == (32, 24, 1)
    assert encoding.recon.field_of_view == (300.0, 225.0, 8.0)
    assert encoding.trajectory == "spiral"
    assert not encoding.is_cartesian
    limit = encoding.limits["kspace_encoding_step_1"]
    assert (limit.minimum, limit.maximum, limit.center) == (1, 47, 24)
    assert header.channels == 3
    assert header.frequency == 63870000
    assert header.repetition_time == pytest.approx(0.0035)
    assert header.echo_times == pytest.approx((0.0015, 0.0025))
    assert header.inversion_times == pytest.approx((0.1,))


def test_description_of_a_trajectory(scans):
    text = (
        "<trajectoryDescription><identifier>HargreavesVDS2000</identifier>"
        "<userParameterLong><name>interleaves</name><value>8</value></userParameterLong>"
        "<userParameterDouble><name>krmax_per_cm</name><value>2.5</value></userParameterDouble></trajectoryDescription>"
    )
    description = parse(scans.Protocol(trajectory="spiral", description=text).xml()).encoding(0).description
    assert description.identifier == "HargreavesVDS2000"
    assert description.longs == {"interleaves": 8}
    assert description.doubles == {"krmax_per_cm": 2.5}


@pytest.mark.parametrize(
    "dress", [lambda t: t + "\0", lambda t: "\ufeff" + t, lambda t: t.replace("<TR>", "<newElement>ü</newElement><TR>")]
)
def test_tolerates_nul_mark_and_newer_elements(scans, dress):
    # The declared encoding is ASCII, the text is not: it was decoded long before it comes here.
    assert parse(dress(scans.Protocol().xml())).repetition_time == pytest.approx(0.003)


def test_header_without_namespace(scans):
    assert parse(scans.Protocol().xml().replace(' xmlns="http://www.ismrm.org/ISMRMRD"', "")).channels == 3


def test_frequency_zero_and_missing_parts_are_absent(scans):
    header = parse(scans.Protocol(channels=None, sequence="").xml().replace("63870000", "0"))
    assert header.frequency is None
    assert header.channels is None
    assert header.repetition_time is None
    assert header.echo_times == ()


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ("dummy", "header", "not XML"),
        ("", "header", "not XML"),
        ('{"parameters": {}}', "header", "not XML"),
        ("<html/>", "header", "'html'"),
        ('<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"/>', "header", "no encoding"),
    ],
)
def test_what_is_no_header(text, field, words):
    with pytest.raises(DataError, match=words) as caught:
        parse(text)
    assert caught.value.field == field
    assert caught.value.cure


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"fov": (0.0, 320.0, 8.0)}, "encoding[0].reconSpace.fieldOfView_mm.x", "0.0"),
        ({"fov": (float("nan"), 320.0, 8.0)}, "encoding[0].reconSpace.fieldOfView_mm.x", "nan"),
        ({"encoded_fov": (320.0, -1.0, 8.0)}, "encoding[0].encodedSpace.fieldOfView_mm.y", "-1.0"),
        ({"matrix": (32, 0, 1)}, "encoding[0].reconSpace.matrixSize.y", "0"),
        ({"encoded_matrix": ("many", 32, 1)}, "encoding[0].encodedSpace.matrixSize.x", "many"),
        ({"encoded_matrix": (32, 32, 8), "encoded_fov": (320.0, 320.0, 0.0)}, "encoding[0].encodedSpace.fieldOfView_mm.z", "0.0"),
        ({"trajectory": "rosette"}, "encoding[0].trajectory", "rosette"),
        ({"channels": 0}, "acquisitionSystemInformation.receiverChannels", "0"),
        ({"sequence": "<TE>short</TE>"}, "sequenceParameters.TE", "short"),
    ],
)
def test_bad_values_are_named(scans, change, field, value):
    with pytest.raises(DataError) as caught:
        parse(scans.Protocol(**change).xml())
    assert caught.value.field == field
    assert value in caught.value.problem
    assert caught.value.cure


def test_missing_element_is_named(scans):
    text = scans.Protocol().xml().replace("<reconSpace>", "<otherSpace>").replace("</reconSpace>", "</otherSpace>")
    with pytest.raises(DataError) as caught:
        parse(text)
    assert caught.value.field == "encoding[0].reconSpace"


def test_thickness_of_a_single_slice_may_be_zero(scans):
    assert parse(scans.Protocol(fov=(320.0, 320.0, 0.0), encoded_fov=(320.0, 320.0, 0.0)).xml()).encoding(0).recon.field_of_view[2] == 0


def test_unknown_encoding_space(scans):
    with pytest.raises(DataError, match="encoding_space_ref: 3"):
        parse(scans.Protocol().xml()).encoding(3)


def test_agrees_with_the_schema_classes(data_dir):
    found = sorted(data_dir.glob("*/*.h5"))
    assert found
    for path in found:
        text = read_scan(path).header
        ours, theirs = parse(text), ismrmrd.xsd.CreateFromDocument(text)
        assert len(ours.encodings) == len(theirs.encoding)
        for mine, other in zip(ours.encodings, theirs.encoding, strict=True):
            for space, reference in ((mine.encoded, other.encodedSpace), (mine.recon, other.reconSpace)):
                matrix, view = reference.matrixSize, reference.fieldOfView_mm
                assert space.matrix == (matrix.x, matrix.y, matrix.z)
                assert space.field_of_view == (view.x, view.y, view.z)
            assert mine.trajectory == other.trajectory.value
        assert ours.channels == theirs.acquisitionSystemInformation.receiverChannels
