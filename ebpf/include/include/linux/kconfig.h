/* SPDX-License-Identifier: GPL-2.0 */
/* What BCC's prelude needs where a machine has no kernel headers: fixed-width
 * types, three constants and the BPF instruction classes. Struct offsets come from
 * BTF at run time (-D), never from a header, so one tree serves every kernel.
 * BCC finds it through BCC_KERNEL_SOURCE; kconfig.h is force-included first. */
#ifndef ZTPROBE_KCONFIG_H
#define ZTPROBE_KCONFIG_H
#define CONFIG_BPF_SYSCALL 1
#endif
