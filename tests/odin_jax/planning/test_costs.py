"""Costs of programs whose costs are known."""

import jax
import jax.numpy as jnp
import pytest

from odin_jax.planning import costs, hlo

# A gather before a loop of three trips, in whose body there are a product, a
# sum over chips and a part of an array; as XLA prints for TPUs.
LOOP = """
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%fused (p.0: bf16[3,8,16], p.1: s32[]) -> bf16[8,16] {
  %p.0 = bf16[3,8,16]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %slice = bf16[1,8,16]{2,1,0} dynamic-slice(%p.0, %p.1, %zero, %zero), dynamic_slice_sizes={1,8,16}
  ROOT %flat = bf16[8,16]{1,0} bitcast(%slice)
}

%body (state: (s32[], bf16[8,16], bf16[3,8,16])) -> (s32[], bf16[8,16], bf16[3,8,16]) {
  %state = (s32[], bf16[8,16]{1,0:T(8,128)(2,1)}, /*index=2*/bf16[3,8,16]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = bf16[8,16]{1,0} get-tuple-element(%state), index=1
  %all = bf16[3,8,16]{2,1,0} get-tuple-element(%state), index=2
  %part = bf16[8,16]{1,0:S(1)} fusion(%all, %i), kind=kLoop, calls=%fused
  %product = bf16[8,8]{1,0} dot(%x, %part), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %total = bf16[8,8]{1,0} all-reduce(%product), channel_id=3, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %step = s32[] constant(STEP)
  %i.next = s32[] add(%i, %step)
  ROOT %next = (s32[], bf16[8,16]{1,0}, bf16[3,8,16]{2,1,0}) tuple(%i.next, %x, %all)
}

%condition (state.1: (s32[], bf16[8,16], bf16[3,8,16])) -> pred[] {
  %state.1 = (s32[], bf16[8,16]{1,0}, bf16[3,8,16]{2,1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[]{:T(128)} constant(LIMIT)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (arg: bf16[8,4]) -> (s32[], bf16[8,16], bf16[3,8,16]) {
  %arg = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  %whole = bf16[8,16]{1,0:T(8,128)(2,1)} all-gather(%arg), dimensions={1}, replica_groups=GROUPS, use_global_device_ids=true
  %zero.1 = s32[] constant(0)
  %start = s32[] copy(%zero.1)
  %three = bf16[3,8,16]{2,1,0} broadcast(%start), dimensions={}
  %init = (s32[], bf16[8,16]{1,0}, bf16[3,8,16]{2,1,0}) tuple(%start, %whole, %three)
  ROOT %loop = (s32[], bf16[8,16]{1,0}, bf16[3,8,16]{2,1,0}) while(%init), condition=%condition, body=%body KNOWN
}
"""


def loop(limit='3', step='1', groups='[2,4]<=[8]', known=''):
  values = {'LIMIT': limit, 'STEP': step, 'GROUPS': groups, 'KNOWN': known}
  text = LOOP
  for name, value in values.items():
    text = text.replace(name, value)
  return costs.of(text)


def test_loops_count_by_their_trips():
  found = loop()
  assert found.flops == 3 * 2 * 8 * 8 * 16
  assert found.unknown_loops == 0
  gather, reduction = (
    found.collectives[kind] for kind in ('all-gather', 'all-reduce')
  )
  assert (gather.count, gather.num_bytes) == (1, 8 * 16 * 2)
  # Three quarters of it come from the other three.
  assert gather.sent_bytes == 3 / 4 * 8 * 16 * 2
  assert (reduction.count, reduction.num_bytes) == (3, 3 * 8 * 8 * 2)
  assert reduction.sent_bytes == 3 * 2 * 3 / 4 * 8 * 8 * 2


@pytest.mark.parametrize(
  'groups',
  [
    '{{0,1,2,3},{4,5,6,7}}',
    '[2,4]<=[2,2,2]T(1,0,2)',
    "mesh['data'=2,'fsdp'=4] {'fsdp'}",
    "mesh['a'=8] {'a':(1)4}",
    "mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b'}",
  ],
)
def test_groups_are_read_in_every_spelling(groups):
  assert loop(groups=groups).as_dict() == loop().as_dict()


@pytest.mark.parametrize(
  'limit,step,trips', [('8', '2', 4), ('9', '2', 5), ('0', '1', 0)]
)
def test_loops_of_any_step(limit, step, trips):
  assert loop(limit=limit, step=step).flops == trips * 2 * 8 * 8 * 16


def test_what_xla_knows_of_a_loop_goes_before_its_condition():
  known = ', backend_config={"known_trip_count":{"n":"5"},"x":[]}'
  assert loop(known=known).flops == 5 * 2 * 8 * 8 * 16


def test_a_loop_of_unknown_length_is_told():
  found = loop(limit='nothing')
  assert found.unknown_loops == 1
  assert found.flops == 2 * 8 * 8 * 16


def test_memory_is_what_is_read_and_written():
  # The gather, what copies the index and what fills the array of three; in the
  # loop the part that the fusion reads (it is written near the processor), the
  # product, its sum and the next index; and the test.
  before = (8 * 4 * 2 + 8 * 16 * 2) + (4 + 4) + (4 + 3 * 8 * 16 * 2)
  part, product, total = 8 * 16 * 2 + 4, 8 * 16 * 2 + 8 * 8 * 2, 2 * 8 * 8 * 2
  body = part + product + total + 3 * 4
  test = 4 + 4 + 1
  assert loop().memory_bytes == before + 3 * (body + test)


def test_a_fused_sum_of_which_each_keeps_its_part():
  text = """
HloModule m

%all-reduce-scatter.1 (input: bf16[64,64]) -> bf16[16,64] {
  %input = bf16[64,64]{1,0} parameter(0)
  %sum = bf16[64,64]{1,0} all-reduce(%input), replica_groups={{0,1,2,3}}, to_apply=%add
  %zero = u32[] constant(0)
  ROOT %part = bf16[16,64]{1,0} dynamic-slice(%sum, %zero, %zero), dynamic_slice_sizes={16,64}
}

ENTRY %main (arg: bf16[64,64]) -> bf16[16,64] {
  %arg = bf16[64,64]{1,0} parameter(0)
  ROOT %y = bf16[16,64]{1,0} fusion(%arg), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
  found = costs.of(text)
  assert set(found.collectives) == {'reduce-scatter'}
  part = found.collectives['reduce-scatter']
  assert part.num_bytes == 64 * 64 * 2
  assert part.sent_bytes == 3 / 4 * 64 * 64 * 2


def test_async_permutes_and_kernels():
  text = """
HloModule m

ENTRY %main (arg: bf16[64,64]) -> f32[64,64] {
  %arg = bf16[64,64]{1,0} parameter(0)
  %s = (bf16[64,64]{1,0}, bf16[64,64]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%arg), source_target_pairs={{0,1},{1,0}}
  %d = bf16[64,64]{1,0} collective-permute-done(%s)
  %k = f32[64,64]{1,0} custom-call(%d), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"bW9k","cost_estimate":{"flops":"1000","transcendentals":"8"}}}
  ROOT %l = f32[64,64]{1,0} custom-call(%k), custom_call_target="tpu_custom_call", backend_config={}
}
"""
  found = costs.of(text)
  assert found.collectives['collective-permute'].sent_bytes == 64 * 64 * 2
  assert (found.flops, found.silent_kernels) == (1000, 1)


def test_what_goes_between_slices_is_told_apart():
  # As XLA prints it: a reduction of three slices, done by their machines.
  transfer = (
    'is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name='
    '"xla_megascale_runtime",_xla_megascale_reduce_operation="SUM",'
    '_xla_megascale_target="{1,2,3}x{0:3}",_xla_megascale_transfer_type='
    '"ALL_REDUCE"}'
  )
  text = f"""
HloModule m

ENTRY %main (arg: f32[64,64]) -> f32[64,64] {{
  %arg = f32[64,64]{{1,0}} parameter(0)
  %total = f32[64,64]{{1,0}} all-reduce(%arg), replica_groups={{{{0,1,2,3}}}}, to_apply=%add
  %after = token[] after-all()
  %send = (f32[64,64]{{1,0}}, u32[], token[]) send(%total, %after), channel_id=2, {transfer}
  %sent = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %recv = (f32[64,64]{{1,0}}, u32[], token[]) recv(%after), channel_id=1, {transfer}
  %done = (f32[64,64]{{1,0}}, token[]) recv-done(%recv), channel_id=1, is_host_transfer=true
  ROOT %y = f32[64,64]{{1,0}} get-tuple-element(%done), index=0
}}
"""
  found = costs.of(text)
  num_bytes = 64 * 64 * 4
  for kind, share in (('between slices: ', 2 / 3), ('', 3 / 4)):
    part = found.collectives.pop(f'{kind}all-reduce')
    assert (part.count, part.num_bytes) == (1, num_bytes)
    assert part.sent_bytes == pytest.approx(2 * share * num_bytes)
  assert not found.collectives
  # The sum in the slice reads and writes; one is read to be sent, and one
  # written that comes, with a word of the hardware's.
  assert found.memory_bytes == 4 * num_bytes + 4
  with pytest.raises(ValueError, match='send: its slices cannot be read'):
    costs.of(text.replace('{1,2,3}x', '?'))


CONVOLUTIONS = {
  'same': dict(window_strides=(1, 1), padding=((1, 1), (1, 1))),
  'strided': dict(window_strides=(2, 2), padding=((0, 1), (0, 1))),
  'dilated': dict(
    window_strides=(1, 1), padding=((2, 2), (2, 2)), rhs_dilation=(2, 2)
  ),
  'spread': dict(
    window_strides=(1, 1), padding=((2, 1), (2, 1)), lhs_dilation=(2, 2)
  ),
}


@pytest.mark.parametrize('name', CONVOLUTIONS)
def test_convolutions_are_counted_as_xla_does(name):
  def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      **CONVOLUTIONS[name],
    )

  shapes = [
    jax.ShapeDtypeStruct(shape, jnp.float32)
    for shape in ((2, 7, 9, 3), (3, 3, 3, 5))
  ]
  lowered = jax.jit(convolve).lower(*shapes)
  # Before the CPU's own kernels take its place.
  found = costs.of(lowered.as_text(dialect='hlo'))
  assert found.flops == lowered.cost_analysis()['flops'] > 0


def test_a_scan_of_products():
  def products(x, kernels):
    return jax.lax.scan(lambda x, k: (x @ k, None), x, kernels)[0]

  shapes = [
    jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 16), (5, 16, 16))
  ]
  text = jax.jit(products).lower(*shapes).as_text(dialect='hlo')
  assert costs.of(text).flops == 5 * 2 * 8 * 16 * 16


def test_costs_come_back_from_json():
  found = loop()
  again = costs.from_dict(found.as_dict())
  assert again == found


def test_a_text_that_is_no_program_is_refused():
  with pytest.raises(ValueError, match='ENTRY'):
    hlo.parse('not a program')
