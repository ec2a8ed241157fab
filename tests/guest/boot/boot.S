/*
 * The smallest guest: three disk sectors of real-mode code that talk on COM1. Ready 0.2 s after QEMU's exec, even under TCG.
 *
 * It polls the ACPI power button and powers off through S5. SeaBIOS puts the PM1 block at I/O port 0x600 on both pc and q35
 * (src/fw/dev-q35.h and dev-piix.h there, "PORT_ACPI_PM_BASE").
 *
 * Every byte that arrives on COM1 is a command:
 *
 *   p  power off through S5                  d  deaf: from now on the power button is only reported
 *   r  reset the machine (port 0xcf9)        h  hearing: the power button powers off again
 *   x  panic: tell pvpanic, ISA and PCI      c  print `COUNT 000001`, … nine times a second
 *   o  reset, but once in the disk's life    f  flood: print lines as fast as the port takes them
 *   w  count on the disk, say the count      s  spin: never halt, so that a whole CPU is used
 *   k  keys: what is typed at the keyboard comes back on COM1, `?` for a key without a character
 *   n  back to silence after c, f, k or s
 *
 * Any other byte comes back as it is. --defsym INIT=BYTE runs a command at boot, for tests that do not type.
 */
.code16
.globl _start
.ifndef INIT
.set INIT, 0
.endif

.set COM1, 0x3f8
.set PM1_STATUS, 0x600
.set PM1_ENABLE, 0x602
.set PM1_CONTROL, 0x604
.set POWER_BUTTON, 0x100
.set SLEEP_S5, 0x2000            /* SLP_EN with SLP_TYP 0: S5 in QEMU's DSDT */
.set TICKS, 0x46c                /* the BIOS's count of 18.2 Hz timer interrupts */

_start:
  cli
  cld
  xor %ax, %ax
  mov %ax, %ds
  mov %ax, %es
  mov %ax, %ss
  mov $0x7c00, %sp
  ljmp $0, $1f
1:
  sti
  mov %dl, drive
  movw $2, packet_count          /* sectors 1 and 2, to right behind this one */
  movw $0x7e00, packet_offset
  movl $1, packet_lba
  mov $0x42, %ah
  call disk
  jnc begin
  mov $no_disk, %si
  call puts
2:
  hlt
  jmp 2b

/* One int 13h call, AH the function, on the packet. */
disk:
  mov drive, %dl
  mov $packet, %si
  xor %al, %al
  int $0x13
  ret

/* The string at SI, to COM1. */
puts:
  lodsb
  test %al, %al
  jz 4f
  call putc
  jmp puts
4:
  ret

/* The byte AL, to COM1. */
putc:
  push %dx
  push %ax
  mov $COM1 + 5, %dx
5:
  in %dx, %al
  test $0x20, %al
  jz 5b
  pop %ax
  mov $COM1, %dx
  out %al, %dx
  pop %dx
  ret

no_disk: .asciz "BOOT-GUEST-NO-DISK\r\n"
drive: .byte 0
.balign 4
packet:
  .word 16
packet_count: .word 0
packet_offset: .word 0
  .word 0
packet_lba: .quad 0

.org 510
.word 0xaa55

/* ---- sector 1 ---- */
begin:
  mov $PM1_ENABLE, %dx
  in %dx, %ax
  or $POWER_BUTTON, %ax
  out %ax, %dx
  mov $ready, %si
  call puts
  mov $INIT, %al
  test %al, %al
  jnz obey

main:
  cmpb $'f', mode
  je flood
  cmpb $'s', mode
  je poll
  hlt                            /* woken by the BIOS timer */
  cmpb $'c', mode
  jne poll
  mov TICKS, %ax
  sub last_count, %ax
  cmp $2, %ax
  jb poll
  mov TICKS, %ax
  mov %ax, last_count
  mov $count_digits + 5, %di
  call increment
  mov $count_line, %si
  call puts
  jmp poll
flood:
  mov $flood_line, %si
  call puts

poll:
  mov $PM1_STATUS, %dx
  in %dx, %ax
  test $POWER_BUTTON, %ax
  jz 1f
  mov $POWER_BUTTON, %ax         /* written as 1, it is cleared */
  out %ax, %dx
  mov $button, %si
  call puts
  cmpb $0, deaf
  je power_off
1:
  cmpb $'k', mode
  jne 1f
  call typed
1:
  mov $COM1 + 5, %dx
  in %dx, %al
  test $1, %al
  jz main
  mov $COM1, %dx
  in %dx, %al

obey:
  cmp $'p', %al
  je power_off
  cmp $'r', %al
  je reset
  cmp $'x', %al
  je panic
  cmp $'o', %al
  je reset_once
  cmp $'w', %al
  je count_on_disk
  cmp $'d', %al
  je 2f
  cmp $'h', %al
  je 3f
  cmp $'c', %al
  je 4f
  cmp $'f', %al
  je 4f
  cmp $'s', %al
  je 4f
  cmp $'k', %al
  je 4f
  cmp $'n', %al
  je 4f
  call putc
  jmp main
2:
  movb $1, deaf
  jmp main
3:
  movb $0, deaf
  jmp main
4:
  mov %al, mode
  jmp main

power_off:
  mov $bye, %si
  call puts
  mov $PM1_CONTROL, %dx
  mov $SLEEP_S5, %ax
  out %ax, %dx
  jmp silence

reset:
  mov $resetting, %si
  call puts
  mov $0xcf9, %dx
  mov $0x06, %al
  out %al, %dx
  jmp silence

/* Nothing more will be done; interrupts stay on, so that a monitor sees a live guest. */
silence:
  hlt
  jmp silence

reset_once:
  cmpb $'0', disk_digits + 5
  jne main
  call store
  jmp reset

count_on_disk:
  call store
  mov $disk_line, %si
  call puts
  jmp main

/* Counts one up in sector 2 and writes that back. */
store:
  mov $disk_digits + 5, %di
  call increment
  movw $1, packet_count
  movw $sector2, packet_offset
  movl $2, packet_lba
  mov $0x43, %ah
  call disk
  jnc 5f
  mov $not_written, %si
  call puts
5:
  ret

/* Six decimal digits that end at DI, one up. */
increment:
  mov $6, %cx
6:
  incb (%di)
  cmpb $'9', (%di)
  jbe 7f
  movb $'0', (%di)
  dec %di
  loop 6b
7:
  ret

mode: .byte 'n'
deaf: .byte 0
last_count: .word 0
ready: .asciz "BOOT-GUEST-READY\r\n"
bye: .asciz "BOOT-GUEST-POWEROFF\r\n"
button: .asciz "BOOT-GUEST-BUTTON\r\n"
flood_line: .asciz "FLOOD 0123456789abcdefghijklmnopqrstuvwxyz 0123456789abcdefghij\r\n"
count_line: .ascii "COUNT "
count_digits: .asciz "000000\r\n"
.org 1024

/* ---- sector 2: what `w` and `o` write back stands first ---- */
sector2:
disk_line: .ascii "BOOT-GUEST-WRITTEN "
disk_digits: .asciz "000000\r\n"

resetting: .asciz "BOOT-GUEST-RESET\r\n"
not_written: .asciz "BOOT-GUEST-NOT-WRITTEN\r\n"
panicking: .asciz "BOOT-GUEST-PANIC\r\n"

/* pvpanic: bit 0 written to port 0x505 (ISA), and to the first byte of BAR 0 of each 1b36:0011 (PCI) on buses 0 to 15. */
panic:
  mov $panicking, %si
  call puts
  mov $0x505, %dx
  mov $1, %al
  out %al, %dx
  call unreal
  mov $0x80000000, %ebx          /* configuration address: bus, device and function counted up */
8:
  mov %ebx, %eax
  call config
  cmp $0x00111b36, %eax
  jne 9f
  lea 0x10(%ebx), %eax
  call config
  and $0xfffffff0, %eax
  jz 9f
  movb $1, %fs:(%eax)
9:
  add $0x100, %ebx
  cmp $0x80100000, %ebx
  jb 8b
  jmp silence

/* The next key of the BIOS, if there is one, to COM1. */
typed:
  mov $1, %ah
  int $0x16
  jz 10f
  xor %ah, %ah
  int $0x16
  test %al, %al
  jnz 11f
  mov $'?', %al
11:
  call putc
10:
  ret

/* EAX: the PCI configuration word at that address. */
config:
  mov $0xcf8, %dx
  out %eax, %dx
  mov $0xcfc, %dx
  in %dx, %eax
  ret

/* Gives FS a limit of 4 GiB: protected mode is entered for as long as it takes to load it. */
unreal:
  cli
  lgdt gdt_pointer
  mov %cr0, %eax
  or $1, %al
  mov %eax, %cr0
  mov $8, %cx
  mov %cx, %fs
  and $0xfe, %al
  mov %eax, %cr0
  xor %cx, %cx
  mov %cx, %fs
  sti
  ret

.balign 8
gdt:
  .quad 0
  .quad 0x00cf92000000ffff       /* data, base 0, 4 GiB */
gdt_pointer:
  .word . - gdt - 1
  .long gdt
.org 1536
