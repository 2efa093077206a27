"""Theano's rewrites that programs are compiled without: they would change results, or take too long."""

from .elementwise import OPS as ELEMENTWISE

# Rewrites that change what a program with infinities, NaN, signed zeros or wrapping integers computes, or that
# replace an op by one that overflows elsewhere; numpy is the definition. Rewrites that only round otherwise stay.
UNSAFE = (
    # x - x, x / x, x * 0 and 0 / x become constants, x * a / a becomes x; x + 0 forgets a -0.0
    "local_add_canonizer",
    "local_mul_canonizer",
    "local_mul_zero",
    "local_mul_specialize",
    "local_zero_div",
    "local_0_dot_x",
    "local_elemwise_sub_zeros",
    "local_add_specialize",
    # a + (b + c) becomes (a + b) + c, which may overflow where the former doesn't
    "local_add_mul_fusion",
    # BLAS skips a product that is multiplied by 0, so that NaN and infinities in it are lost (a learning rate of 0);
    # and the search for such products takes a time quadratic in the length of a chain of sums (gemm.py finds those of
    # updates by constants)
    "gemm_optimizer",
    "local_dot22_to_dot22scalar",
    # (a + b) * c becomes a * c + b * c: an infinity minus an infinity
    "local_greedy_distributor",
    # x == x becomes true, but this is how one asks for NaN
    "local_useless_elemwise",
    "local_useless_elemwise_comparison",
    # x * select(c, y, 0) becomes select(c, x * y, 0); 0 * infinity is NaN
    "local_mul_switch_sink",
    "local_div_switch_sink",
    # a factor taken out of a sum overflows elsewhere, or meets a sum that cancels
    "local_sum_prod_mul_by_scalar",
    "local_sum_prod_div_dimshuffle",
    "local_sumsqr2dot",
    "local_opt_alloc",
    # 1 / (1 / x) becomes x; 1 / x becomes a power
    "local_func_inv",
    "local_inv_canon",
    # an integer's abs and negative wrap
    "local_abs_lift",
    "local_abs_merge",
    "local_max_to_min",
    "local_neg_to_mul",
    # stabler formulas: finite where the definition says infinity or NaN
    "local_exp_over_1_plus_exp",
    "local_sigm_times_exp",
    "log1msigm_to_softplus",
    "logsigm_to_softplus",
    "log1p_neg_sigmoid,",
    "log1pexp_to_softplus",
    "local_log_add",
    "local_log_sum_exp",
    "local_logsoftmax",
    "local_logsoftmax_grad",
    "crossentropy_to_crossentropy_with_softmax",
    "crossentropy_to_crossentropy_with_softmax_with_bias",
    "graph_merge_softmax_with_crossentropy_softmax",
    "local_argmax_pushdown",
    # fails where the condition is a constant of type bool
    "local_useless_switch",
    # loses the accumulator's dtype, and then fails, where a sum of integers runs over an axis of length 1
    "local_reduce_broadcastable",
    # its check fails where there is no compiler
    "AbstractConvCheck",
)

# Without C, an op that numpy has no function for is a loop in Python, and working in place is one more copy.
SLOW_WITHOUT_C = ("elemwise_fusion", "local_inv_1_plus_exp", "inplace_elemwise_opt")
# From this many instructions on, working in place costs more in checks, quadratic in their number, than it saves.
DEEP = 1000
# Fusing more elementwise ops than this into one takes Theano, or the C compiler, minutes.
FUSED = 100


def excluded(program, with_c):
    """The names of the rewrites that this program is compiled without."""
    exclude = UNSAFE if with_c else UNSAFE + SLOW_WITHOUT_C
    if len(program.instructions) > DEEP:
        exclude += ("inplace_elemwise_opt",)
    if with_c and largest_fusion(program) > FUSED:
        exclude += ("elemwise_fusion",)
    return exclude


def largest_fusion(program):
    """The number of elementwise instructions that Theano would fuse into one op."""
    uses = [0] * len(program.values)
    for instruction in program.instructions:
        for number in instruction.inputs:
            uses[number] += 1
    for number in program.results():
        uses[number] += 1
    sizes = [0] * len(program.leaves)
    for instruction in program.instructions:
        size = 0
        if instruction.op in ELEMENTWISE:
            size = 1 + sum(sizes[number] for number in instruction.inputs if uses[number] == 1)
        sizes.append(size)
    return max(sizes) if sizes else 0
