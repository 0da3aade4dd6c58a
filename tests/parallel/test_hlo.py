"""Reading compiled programs: loops, and the bytes that instructions move."""

import jax
import jax.numpy as jnp
import pytest

from mmbert_jax.parallel.hlo import executions, memory_traffic, parse, type_bytes

# Eight slices of an array are read in a loop, and one array is added to itself in a TPU's vector memory.
TEXT = """\
HloModule example, is_scheduled=true

%slice_fusion (p0: f32[8,1024], p1: s32[]) -> f32[1024] {
  %p0 = f32[8,1024]{1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %zero = s32[] constant(0)
  %ds = f32[1,1024]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,1024}
  ROOT %flat = f32[1024]{0} bitcast(%ds)
}

%body (state: (s32[], f32[8,1024], f32[1024])) -> (s32[], f32[8,1024], f32[1024]) {
  %state = (s32[], f32[8,1024]{1,0}, f32[1024]{0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = f32[8,1024]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %row = f32[1024]{0} fusion(%x, %i), kind=kLoop, calls=%slice_fusion
  %fast = f32[1024]{0:T(1024)S(1)} add(%row, %row)
  ROOT %next = (s32[], f32[8,1024]{1,0}, /*index=2*/f32[1024]{0}) tuple(%i, %x, %fast)
}

%condition (state.1: (s32[], f32[8,1024], f32[1024])) -> pred[] {
  %state.1 = (s32[], f32[8,1024]{1,0}, f32[1024]{0}) parameter(0)
  %counter = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[]{:T(128)} constant(8)
  ROOT %lt = pred[] compare(%counter, %limit), direction=LT
}

ENTRY %main (a: f32[8,1024]) -> f32[1024] {
  %a = f32[8,1024]{1,0:T(8,128)} parameter(0)
  %start = (s32[], f32[8,1024]{1,0}, f32[1024]{0}) custom-call(), custom_call_target="make"
  %loop = (s32[], f32[8,1024]{1,0}, f32[1024]{0}) while(%start), condition=%condition, body=%body
  ROOT %out = f32[1024]{0} get-tuple-element(%loop), index=2
}
"""


def test_types():
    assert type_bytes("bf16[6,64,768]{2,1,0:T(8,128)(2,1)}") == 6 * 64 * 768 * 2
    assert type_bytes("(f32[3]{0}, pred[5]{0}, s32[], u4[3]{0})") == 12 + 5 + 4 + 2
    assert type_bytes("(f32[3]{0:T(1024)S(1)}, f32[3]{0})", main_memory=True) == 12


def test_a_loop_multiplies_what_it_holds():
    assert executions(parse(TEXT)) == {"main": 1, "body": 8, "condition": 8, "slice_fusion": 8}


def test_the_length_of_a_loop_can_be_an_argument():
    text = TEXT.replace("constant(8)", 'get-tuple-element(%state.1), index="n"')
    assert executions(parse(text), unknown_trips=3)["body"] == 3
    text = text.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}')
    assert executions(parse(text), unknown_trips=3)["body"] == 5


def test_traffic_counts_slices_and_leaves_out_vector_memory():
    """A trip reads a slice and the counter, writes the row, reads it twice; the compare reads and writes 9 bytes."""
    start = 4 + 8 * 4096 + 4096
    trip = (4096 + 4) + 4096 + 2 * 4096
    assert memory_traffic(parse(TEXT)) == start + 8 * (trip + 4 + 4 + 1)


def test_the_count_is_that_of_xla_where_there_is_no_loop():
    x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    compiled = jax.jit(lambda a, b: jnp.tanh(a @ b) + 1).lower(x, x).compile()
    expected = compiled.cost_analysis()["bytes accessed"]
    assert memory_traffic(parse(compiled.as_text())) == pytest.approx(expected, rel=0.01)


def test_of_what_is_sliced_after_arithmetic_the_slices_are_read():
    """A fusion of two arrays of 4096 bytes: of both together 3 columns of 16, and of one of them a sum of all."""
    text = """HloModule sliced, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %r = f32[] add(%a, %b)
}

%fused (x: f32[64,16], y: f32[64,16], z: bf16[64,8]) -> (f32[64,3], f32[]) {
  %x = f32[64,16]{1,0} parameter(0)
  %y = f32[64,16]{1,0} parameter(1)
  %z = bf16[64,8]{1,0} parameter(2)
  %zz = bf16[64,16]{1,0} concatenate(%z, %z), dimensions={1}
  %wide = f32[64,16]{1,0} convert(%zz)
  %both = f32[64,16]{1,0} add(%x, %wide)
  %all = f32[64,16]{1,0} multiply(%both, %y)
  %first = f32[64,3]{1,0} slice(%all), slice={[0:64], [0:3]}
  %zero = f32[] constant(0)
  %total = f32[] reduce(%y, %zero), dimensions={0,1}, to_apply=%sum
  ROOT %t = (f32[64,3]{1,0}, f32[]) tuple(%first, %total)
}

ENTRY %main (x: f32[64,16], y: f32[64,16], z: bf16[64,8]) -> (f32[64,3], f32[]) {
  %x = f32[64,16]{1,0} parameter(0)
  %y = f32[64,16]{1,0} parameter(1)
  %z = bf16[64,8]{1,0} parameter(2)
  ROOT %f = (f32[64,3]{1,0}, f32[]) fusion(%x, %y, %z), kind=kLoop, calls=%fused
}
"""
    read = 64 * 3 * 4 + 4096 + 64 * 3 * 2
    assert memory_traffic(parse(text)) == read + 64 * 3 * 4 + 4


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="no HLO module"):
        parse("module @jit_f {}")
