use super::*;

fn instruction(text: &str) -> Instruction {
    match parse_body(text).unwrap().pop() {
        Some(Statement::Instruction(i)) => i,
        other => panic!("{other:?}"),
    }
}

fn operands(text: &str) -> String {
    format!("{:?}", instruction(&format!("op {text};")).operands)
}

#[test]
fn operands_are_what_they_look_like() {
    for (text, expected) in [
        ("%r1, _", r#"[Name("%r1"), Sink]"#),
        ("%tid.x, %v.y, %v.a", r#"[Name("%tid.x"), Component("%v", 1), Component("%v", 3)]"#),
        ("%r1.b2, %r1.h1", r#"[Selector("%r1", 2..3), Selector("%r1", 2..4)]"#),
        (
            "%p1|%p2, _|%p1, %r1|%p0",
            r#"[Pair(Name("%p1"), Name("%p2")), Pair(Sink, Name("%p1")), Pair(Name("%r1"), Name("%p0"))]"#,
        ),
        ("!%p1", r#"[Not("%p1")]"#),
        (
            "-1, 0x7fffffff+1, ~0, 3 > 2, (.s64)0xffffffffffffffff",
            "[Int(-1), Int(2147483648), Int(-1), Int(1), Int(-1)]",
        ),
        ("18446744073709551615U, -9223372036854775808", "[Int(18446744073709551615), Int(-9223372036854775808)]"),
        ("0f3f800000, -0f3f800000, 1.5", "[F32(1065353216), F32(3212836864), F64(4609434218613702656)]"),
        ("{%r1, _, 2}", r#"[Vector([Name("%r1"), Sink, Int(2)])]"#),
        ("sym+4, sym-4", r#"[Offset(Name("sym"), 4), Offset(Name("sym"), -4)]"#),
        ("[%rd1]", r#"[Address { base: Name("%rd1"), offset: 0, coordinates: [] }]"#),
        ("[%rd1+-16]", r#"[Address { base: Name("%rd1"), offset: -16, coordinates: [] }]"#),
        ("[%rd1+4*8-2]", r#"[Address { base: Name("%rd1"), offset: 30, coordinates: [] }]"#),
        ("[sym+0xffffffffffffffff]", r#"[Address { base: Name("sym"), offset: -1, coordinates: [] }]"#),
        ("[4096]", "[Address { base: Int(4096), offset: 0, coordinates: [] }]"),
        ("[%rd1, {%r1, 2}]", r#"[Address { base: Name("%rd1"), offset: 0, coordinates: [Name("%r1"), Int(2)] }]"#),
        ("WARP_SZ", "[Int(32)]"),
        ("1 ? 2 : 3, 0 ? 2 : 0 ? 4 : 5", "[Int(2), Int(5)]"),
    ] {
        assert_eq!(operands(text), expected, "{text}");
    }
}

#[test]
fn a_guard_an_opcode_and_its_modifiers_are_told_apart() {
    let i = instruction("@!%p1 ld.global.L1::no_allocate.L2::128B.v4.b32 {%r1,%r2,%r3,%r4}, [%rd1];");
    let guard = i.guard.unwrap();
    assert_eq!((guard.name.as_str(), guard.negated), ("%p1", true));
    assert_eq!(i.opcode, "ld");
    assert_eq!(i.modifiers, ["global", "L1::no_allocate", "L2::128B", "v4", "b32"]);
    let i = instruction("call.uni (%r1, %r2), f, (1, %r3), proto;");
    assert_eq!(i.operands.len(), 4);
    assert!(matches!(&i.operands[0], Operand::List(l) if l.len() == 2));
}

#[test]
fn source_lines_are_carried_to_the_instructions_that_follow() {
    let body = parse_body("ret; .loc 2 17 5 ret; .loc 1 3 4, function_name $L__info_string0, inlined_at 2 9 1 ret;");
    let sources: Vec<_> = (body.unwrap().iter())
        .map(|s| match s {
            Statement::Instruction(i) => i.source,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sources, [None, Some((2, 17)), Some((1, 3))]);
}

#[test]
fn malformed_operands_are_refused() {
    for text in
        ["", ",", "%r1 %r2", "[%r1", "[]", "{%r1", "%r1.q", "%r1.xy", "%r1.5", "%r1|", "0f3f8", "(1", "1 +", "*%r1"]
    {
        let text = format!("op {text};");
        assert!(text == "op ;" || parse_body(&text).is_err(), "{text}");
    }
}
